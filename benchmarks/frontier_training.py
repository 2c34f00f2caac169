"""How the models of the frontier are trained: ours by `nlf`, the others by TRL, and a steering vector by hand.

A training takes its folder, its seed and its settings, and returns the seconds of each model in the folder: from loading the
model to the stop, in one process. `bf16` is mixed precision, on a GPU, for all of them alike; weights stay in float32.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from frontier_points import Setting, best_of, extremes
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback

from nlf.cli.train import build, train_from_config
from nlf.config import SamplingOptions
from nlf.data.checkpoints import MARKER
from nlf.data.files import make_folder, write_text
from nlf.data.generations import read
from nlf.data.prompts import load_prompts
from nlf.errors import UserError
from nlf.evaluation.sample import prompt_sampler, sample_file
from nlf.evaluation.score import score_file
from nlf.models.encoder import forward_inputs, inputs_on
from nlf.models.policy import Policy, best_device, load_policy
from nlf.models.reading import completion_logits
from nlf.models.sources import model_path
from nlf.rewards.registry import resolve_reward
from nlf.training.distill import distill

LENGTH = 20  # max_completion_length, in training and evaluation
STEP = 64  # completions in a step of our trainings
GENERATIONS = 8  # completions of a prompt in GRPO, and those that SFT, DPO and the steering vector choose from
BATCH = 64  # completions, or pairs, in a step of SFT and DPO
DPO_BETA = 0.1
READ_TOGETHER = 16  # pairs that pass the model at once for the steering vector
DONE, SAMPLES, VECTOR = "seconds.json", "generations.jsonl", "vector.safetensors"


@dataclass(frozen=True)
class Shared:
    """What all trainings of a frontier share.

    Attributes:
        micro_batch: Completions that pass the model at once; `STEP` = all of a step.
        bf16: Mixed precision.
    """

    model: str
    reward: str
    dataset: str
    micro_batch: int = STEP
    bf16: bool = False

    def stamp(self) -> dict:
        """The settings for a stamp; those of the usual size stay as earlier versions wrote them."""
        usual = {"micro_batch": STEP, "bf16": False}
        return {name: value for name, value in asdict(self).items() if name not in usual or usual[name] != value}


@dataclass(frozen=True)
class Run:
    """A training and its points. `make(folder, seed)` trains and returns the seconds of each model in the folder."""

    name: str
    make: Callable[[Path, int], dict[str, float]]
    settings: list[Setting]
    stamp: dict  # the settings on which the result depends
    seconds: float  # estimated for the embedded model
    before: "Run | None" = None  # a training that this one needs


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Inside the `with` block, no other process does the same part; one that does is waited for."""
    make_folder(path.parent)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for another process at {path}", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


# ---- parts ----------------------------------------------------------------------------------------------------------


def trained(run: Run, seed_folder: Path, seed: int) -> dict[str, float]:
    """Train unless the training is finished, and return the seconds of each model.

    Raises:
        UserError: The finished training had other settings.
    """
    folder = seed_folder / run.name
    done = folder / DONE
    if not done.exists():
        if run.before is not None:
            with alone(seed_folder / run.before.name):
                trained(run.before, seed_folder, seed)
        shutil.rmtree(folder, ignore_errors=True)
        print(f"training {folder}", flush=True)
        write_text(done, json.dumps({"stamp": run.stamp, "seconds": run.make(folder, seed)}))
    return finished(run, seed_folder) or {}


def finished(run: Run, seed_folder: Path) -> dict[str, float] | None:
    """The seconds of each model of a finished training; None if it is not finished.

    Raises:
        UserError: It had other settings.
    """
    folder = seed_folder / run.name
    if not (folder / DONE).exists():
        return None
    found = json.loads((folder / DONE).read_text())
    if not covers(found["stamp"], run.stamp):
        raise UserError(
            f"{folder} was trained with {found['stamp']}, expected {run.stamp}; choose another --output_dir"
        )
    return found["seconds"]


def covers(found: dict, wanted: dict) -> bool:
    """Whether a training has what is wanted: the same settings, and every stop. The last stop is a setting: it ends the decay."""
    had, asked = (set(each.get("stops", [0])) for each in (found, wanted))
    same = {**found, "stops": 0} == {**wanted, "stops": 0}
    return same and asked <= had and max(asked) == max(had)


def seconds_before(folder: Path, name: str) -> float:
    """The seconds of the training `name` beside this folder, which a later one needs."""
    return json.loads((folder.with_name(name) / DONE).read_text())["seconds"]["."]


# ---- ours -----------------------------------------------------------------------------------------------------------


def train_nlf(folder: Path, seed: int, values: dict, shared: Shared) -> dict:
    values = values | {"model_name_or_path": shared.model, "reward_funcs": [shared.reward], "seed": seed}
    values |= batch_sizes(values.get("per_device_train_batch_size", STEP), shared.micro_batch)
    values |= {"dataset_name": shared.dataset, "output_dir": str(folder), "eval_strategy": "no", "report_to": "none"}
    start = time.perf_counter()
    train_from_config(*build(values | ({"bf16": True} if shared.bf16 else {})))
    return {".": time.perf_counter() - start}


def train_plain(folder: Path, seed: int, stops: Sequence[int], **settings) -> dict:
    """Train a plain model; the checkpoints at its stops become the folders of their models, and the others go.

    The seconds of a stop include saving the checkpoints before it.
    """
    start, seconds = time.time(), {}
    train_nlf(folder, seed, **settings)
    for step in stops:
        (checkpoint,) = folder.rglob(f"checkpoint-{step}")
        seconds[f"step-{step}"] = (checkpoint / MARKER).stat().st_mtime - start
        checkpoint.rename(folder / f"step-{step}")
    for checkpoint in [*folder.rglob("checkpoint-*")]:
        shutil.rmtree(checkpoint)
    return seconds


def train_student(folder: Path, seed: int, teacher: str, knobs: dict) -> dict:
    before, start = seconds_before(folder, teacher), time.perf_counter()
    distill(model=str(folder.with_name(teacher)), output_dir=str(folder), seed=seed, **knobs)
    return {".": before + time.perf_counter() - start}


# ---- TRL's trainers -------------------------------------------------------------------------------------------------


class Stops(TrainerCallback):
    """Saves the model at chosen steps and records the seconds so far, without those of saving."""

    def __init__(self, folder: Path, steps: Sequence[int], start: float):
        self.folder, self.steps, self.start, self.seconds = folder, steps, start, {}

    def on_step_end(self, args, state, control, model=None, processing_class=None, **kwargs):
        if state.global_step in self.steps:
            reached, name = time.perf_counter(), f"step-{state.global_step}"
            self.seconds[name] = reached - self.start
            model.save_pretrained(self.folder / name)
            processing_class.save_pretrained(self.folder / name)
            self.start += time.perf_counter() - reached


def plain_arguments(folder: Path, stops: Sequence[int], learning_rate: float, seed: int, bf16: bool = False) -> dict:
    """The settings of TRL's configs: precision as in nlf, and no activation checkpointing, which is slower."""
    return {
        **{"output_dir": str(folder), "max_steps": max(stops), "learning_rate": learning_rate, "seed": seed},
        **{"bf16": bf16, "gradient_checkpointing": False, "save_strategy": "no", "report_to": "none"},
        **{"disable_tqdm": True, "dataloader_pin_memory": False},
    }


def batch_sizes(batch: int, micro_batch: int) -> dict:
    """The settings of a step of `batch` completions, as a whole unless `micro_batch` asks for less than the usual step."""
    micro = min(batch, micro_batch) if micro_batch < STEP else batch
    return {"per_device_train_batch_size": micro, "gradient_accumulation_steps": batch // micro}


def train_grpo(
    folder: Path, seed: int, learning_rate: float, beta: float, batch: int, stops: Sequence[int], shared: Shared
) -> dict:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    scorer = resolve_reward(shared.reward)

    def score(prompts, completions, completion_ids, **columns):
        return scorer(prompts, completions, completion_ids)

    clock = Stops(folder, stops, time.perf_counter())
    config = GRPOConfig(
        **plain_arguments(folder, stops, learning_rate, seed, shared.bf16),
        beta=beta,
        **batch_sizes(batch, shared.micro_batch),
        num_generations=GENERATIONS,
        max_completion_length=LENGTH,
        temperature=1.0,
    )
    rows = Dataset.from_list([{"prompt": row["prompt"]} for row in load_prompts(shared.dataset)])
    GRPOTrainer(model_path(shared.model), score, args=config, train_dataset=rows, callbacks=[clock]).train()
    return clock.seconds


def draw_samples(folder: Path, seed: int, shared: Shared) -> dict:
    """Draw and score the completions of the training prompts that SFT, DPO and the steering vector choose from."""
    start, path = time.perf_counter(), folder / SAMPLES
    drawing = SamplingOptions(num_generations=GENERATIONS, max_completion_length=LENGTH)
    with prompt_sampler(load(shared.model), drawing, seed=seed) as sampler:
        sample_file(path, sampler, load_prompts(shared.dataset), None, what="to choose from")
    score_file(path, [resolve_reward(shared.reward)])
    return {".": time.perf_counter() - start}


def pairs_of(path: Path, reward: str) -> list[tuple[list[int], list[int], list[int]]]:
    """The ids of each prompt with its best and its worst completion by the reward; prompts with a single reward have none.

    Raises:
        UserError: No prompt has two rewards that differ.
    """
    label = resolve_reward(reward).label
    found = [(row["prompt_ids"], row["completion_ids"], extremes(row, label)) for row in read(path)]
    pairs = [(prompt, ids[ends[0]], ids[ends[1]]) for prompt, ids, ends in found if ends]
    if not pairs:
        raise UserError(
            f"{path}: all completions of each prompt have one reward by {label}; there is no best and worst"
        )
    return pairs


def train_sft(
    folder: Path, seed: int, learning_rate: float, stops: Sequence[int], samples: str, shared: Shared
) -> dict:
    """Supervised training on the best of the completions in the folder `samples`."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    clock = Stops(folder, stops, time.perf_counter() - seconds_before(folder, samples))
    label = resolve_reward(shared.reward).label
    chosen = [best_of(row, GENERATIONS, 1, label) for row in read(folder.with_name(samples) / SAMPLES)]
    pairs = [(row["prompt_ids"], row["completion_ids"][0]) for row in chosen]
    rows = [{"input_ids": prompt + ids, "labels": [-100] * len(prompt) + ids} for prompt, ids in pairs]
    arguments = plain_arguments(folder, stops, learning_rate, seed, shared.bf16)
    config = SFTConfig(**arguments, **batch_sizes(BATCH, shared.micro_batch))
    SFTTrainer(model_path(shared.model), config, train_dataset=Dataset.from_list(rows), callbacks=[clock]).train()
    return clock.seconds


def train_dpo(
    folder: Path, seed: int, learning_rate: float, beta: float, stops: Sequence[int], samples: str, shared: Shared
) -> dict:
    """DPO on the best and the worst of the completions in the folder `samples`.

    TRL would tokenise the texts again and end each with EOS; most were cut at `LENGTH`, so the sampled ids are given.
    """
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    class OnIds(DPOTrainer):
        def _prepare_dataset(self, dataset, *about):
            return dataset

    clock = Stops(folder, stops, time.perf_counter() - seconds_before(folder, samples))
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    pairs = pairs_of(folder.with_name(samples) / SAMPLES, shared.reward)
    rows = Dataset.from_list([dict(zip(names, pair, strict=True)) for pair in pairs])
    arguments = plain_arguments(folder, stops, learning_rate, seed, shared.bf16)
    config = DPOConfig(**arguments, **batch_sizes(BATCH, shared.micro_batch), beta=beta)
    OnIds(model_path(shared.model), args=config, train_dataset=rows, callbacks=[clock]).train()
    return clock.seconds


# ---- the steering vector --------------------------------------------------------------------------------------------


def make_vector(folder: Path, seed: int, samples: str, shared: Shared) -> dict:
    """Write the mean state after the middle layer over the best completions, less that over the worst: `(D,)`."""
    start, policy = time.perf_counter() - seconds_before(folder, samples), load(shared.model)
    pairs = pairs_of(folder.with_name(samples) / SAMPLES, shared.reward)
    means = []
    for side in (1, 2):
        total, count = 0.0, 0
        for i in range(0, len(pairs), READ_TOGETHER):
            some = pairs[i : i + READ_TOGETHER]
            states = middle_states(policy, [pair[0] for pair in some], [pair[side] for pair in some])
            total, count = total + states.double().sum(0), count + len(states)
        means.append(total / count)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"vector": (means[0] - means[1]).float().cpu()}, folder / VECTOR)
    return {".": time.perf_counter() - start}


def middle_layer(model: PreTrainedModel) -> nn.Module:
    """The layer in the middle of the longest list of layers."""
    layers = max((each for each in model.modules() if isinstance(each, nn.ModuleList)), key=len)
    return layers[len(layers) // 2]


@torch.inference_mode()
def middle_states(policy: Policy, prompts: list[list[int]], completions: list[list[int]]) -> Tensor:
    """`(N, D)`: what the middle layer returns where it predicts each of the N tokens of the completions."""
    inputs = inputs_on(forward_inputs(prompts, completions, policy.tokenizer.pad_token_id or 0), policy.model.device)
    kept: list[Tensor] = []
    hook = middle_layer(policy.model).register_forward_hook(lambda *call: kept.append(hidden(call[-1])))
    completion_logits(policy.model, inputs)
    hook.remove()
    return kept[0][inputs["predicts"]]


def steered(policy: Policy, folder: Path, strength: float) -> Policy:
    """The policy with the vector of `folder`, times `strength`, added at every token after the middle layer."""
    device, dtype = policy.model.device, policy.model.dtype
    added = strength * load_file(folder / VECTOR)["vector"].to(device, dtype)

    def add(layer: nn.Module, given: tuple, output: Tensor | tuple) -> Tensor | tuple:
        return (hidden(output) + added, *output[1:]) if isinstance(output, tuple) else output + added

    middle_layer(policy.model).register_forward_hook(add)
    return replace(policy, identity=replace(policy.identity, digest=f"{policy.revision}+{strength:g}"))


def hidden(output: Tensor | tuple) -> Tensor:
    """The states that a layer returns, alone or first in a tuple."""
    return output[0] if isinstance(output, tuple) else output


def load(model: str) -> Policy:
    """A model for inference, on this machine's accelerator; checkpoints of a run that goes on too."""
    policy = load_policy(model)
    policy.model.to(best_device())
    return policy
