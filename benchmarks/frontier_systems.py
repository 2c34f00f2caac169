"""The methods that the frontier compares: how each model is trained, and how its points are measured."""

import json
import shutil
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from best_of import best_of_rewards, kl_of_best, with_interval
from frontier_points import (
    BASE,
    CONTRASTIVE,
    DIAL,
    DISTILLED,
    GRPO,
    PLAIN,
    PUBLISHED,
    SFT,
    TAGS,
    auditor_names,
    best_of,
    plain_names,
)  # fmt: skip
from transformers import TrainerCallback

from nlf.cli.arguments import read_recipe, train_knobs
from nlf.cli.train import build, train_from_config
from nlf.config import SamplingOptions, StudentOptions
from nlf.config.objective import DEFAULTS
from nlf.data.checkpoints import MARKER
from nlf.data.files import write_text
from nlf.data.generations import read, write_lines
from nlf.data.prompts import load_prompts
from nlf.errors import UserError
from nlf.evaluation import intervals, metrics
from nlf.evaluation.evaluate import plain, with_intervals
from nlf.evaluation.perplexity import measure_file, model_label
from nlf.evaluation.sample import prompt_sampler, sample_file
from nlf.evaluation.score import score_file
from nlf.method.losses import distillation_kl, teacher_log_probs
from nlf.models.encoder import PromptEncoder, forward_inputs, inputs_on
from nlf.models.policy import Policy, best_device, load_policy
from nlf.models.reading import completion_logits
from nlf.models.sources import model_path
from nlf.rewards import Reward
from nlf.rewards.registry import resolve_reward
from nlf.training.distill import distill

# ---- our trainings by credit: edit their settings here ---------------------------------------------------------------
CREDIT = {"credit_coef": 1.0, "contrast_coef": 0.0, "pool_keep": 1, "num_train_epochs": 15, "steps_per_iteration": 4}
PLAINS = {  # name: settings of a plain model, trained directly
    "plain": {"kl_budget": 0.1},
    "plain-far": {"kl_budget": 0.3},
}
PLAIN_STOPS = (1 / 3, 2 / 3, 1.0)  # of a training's iterations; each stop is a point
DIALS = {  # name: settings of a model with five tags
    "dial": {"kl_budget": 0.1},
}
DIAL_GUIDANCE = (0.0, 1.0, 3.0)  # from the best tag; the other tags are measured without guidance

# ---- what all systems share -------------------------------------------------------------------------------------------
SYSTEMS = ("plain", "dial", "contrastive", "short", "published", "grpo", "sft")  # what --systems chooses among
LENGTH = 20  # max_completion_length, in training and evaluation
STEP = 64  # completions in a step of our trainings
FILTERED = SamplingOptions(num_generations=25, max_completion_length=LENGTH, top_p=0.9)
FREE = SamplingOptions(num_generations=16, max_completion_length=LENGTH)  # temperature 1, no top-k, no top-p
CURVE = replace(FREE, num_generations=64)  # of the base: best of n is known up to this n
CHOICES = (1, 2, 4, 8)  # n of best-of-n; 1 is the start itself
GUIDANCE = (0.0, 0.5, 1.0, 2.0)  # from the best tag
MIDDLE, MIDDLE_GUIDANCE = 2, (2.0, 4.0, 8.0, 12.0, 14.0, 16.0)  # quantile of the middle tag, guidance from it
SHORT = {  # the contrastive recipe cut to one small iteration with a high learning rate
    **{"num_train_epochs": 1, "prompts_per_iteration": 256, "steps_per_iteration": 25},
    **{"learning_rate": 1e-3, "beta": 1.0},
}
SHORT_GUIDANCE = (4.0, 8.0, 12.0, 18.0)  # from the middle tag
STUDENTS = {  # knobs of `nlf distill`
    "distilled": {},
    "distilled-best-1.5": {"tag": "best", "guidance_scale": 1.5},
    "distilled-best-2": {"tag": "best", "guidance_scale": 2.0},
    "distilled-g12": {"guidance_scale": 12.0},
    "distilled-g16": {"guidance_scale": 16.0},
    "five-tags": {"keep_tags": True},
}
GENERATIONS = 8  # completions of a prompt, in GRPO and for supervised training on the best
SFT_BATCH = 64
DONE = "seconds.json"
COST = {  # estimated seconds on 2 slow cores
    **{"contrastive iteration": 35, "published iteration": 26, "distilled": 30, "five tags": 34, "short": 22},
    **{"plain iteration": 4.7, "dial iteration": 9.2},
    **{"grpo step of 64": 0.9, "sft step": 0.4, "sft samples": 15, "completion": 1 / 250, "point": 5},
}


@dataclass(frozen=True)
class Setting:
    """A point to measure: a model, its tag and guidance, and the cost of its sampling."""

    id: str  # file name
    group: str
    series: str  # plots join its points in order
    label: str
    model: str = "."  # folder within the training's folder
    quantile: int | None = None  # of the tag; None = no tag
    guidance: float = 0.0
    best_of: int = 0  # 0 = all completions, none chosen

    @property
    def cost(self) -> int:
        """Forward passes a token; plain sampling has 1."""
        return (self.best_of or 1) * (2 if self.guidance else 1)


@dataclass(frozen=True)
class Run:
    """A training and its points. `make(folder, seed)` trains and returns the seconds of each model in the folder."""

    name: str
    make: Callable[[Path, int], dict[str, float]]
    settings: list[Setting]
    stamp: dict  # the settings on which the result depends
    seconds: float  # estimated


@dataclass(frozen=True)
class Yardstick:
    """The prompts and models that measure all points.

    Attributes:
        best: `(P, n)` the expected reward of best of 1, 2, … n completions of each prompt by the base at temperature 1.
        free: The sampling rule at temperature 1, for the reward and the KL there.
    """

    reward: Reward
    auditor: Reward | None
    base: Policy
    prompts: list[dict]
    best: np.ndarray | None = None
    free: SamplingOptions = field(default_factory=lambda: FREE)


def yardstick_of(options: Namespace, base: str, prompts: str) -> Yardstick:
    """The yardstick of the flags `reward`, `auditor`, `num_prompts` and `free_generations`, without the curve of best of n."""
    return Yardstick(
        resolve_reward(options.reward),
        None if options.auditor == "none" else resolve_reward(options.auditor),
        load(base),
        load_prompts(prompts, split="test", limit=options.num_prompts),
        free=replace(FREE, num_generations=options.free_generations),
    )


# ---- the trainings -------------------------------------------------------------------------------------------------


def start_settings() -> list[Setting]:
    """The start and its best of n."""
    chosen = [Setting(f"best-of-{n}", BASE, BASE, f"best of {n}", best_of=n) for n in CHOICES[1:]]
    return [Setting("base", BASE, BASE, "base", best_of=1), *chosen]


def runs(options: Namespace) -> list[Run]:
    """All trainings of a seed; teachers come before their students."""
    shared = {"model": options.model, "reward": options.reward, "dataset": options.dataset}
    if options.per_device_train_batch_size < STEP:  # stamps of the usual size stay those of earlier versions
        shared["micro_batch"] = options.per_device_train_batch_size
    makers = {
        "plain": plain_runs, "dial": dial_runs, "contrastive": contrastive_runs, "short": short_runs,
        "published": published_runs, "grpo": grpo_runs, "sft": sft_runs,
    }  # fmt: skip
    return [run for name in SYSTEMS if name in options.systems for run in makers[name](options, shared)]


def credit_values(knobs: dict, options: Namespace, **more) -> dict:
    """The settings of a training by credit."""
    changed = {
        name: getattr(options, name) for name in ("learning_rate", "num_train_epochs") if getattr(options, name)
    }
    return {**CREDIT, "max_completion_length": LENGTH, **knobs, **changed, **more}


def plain_runs(options: Namespace, shared: dict) -> list[Run]:
    """Plain models, trained directly by credit, each with its stops."""
    found = []
    for name in options.plains:
        values = credit_values(PLAINS[name], options, plain="only")
        count, steps = values["num_train_epochs"], values["steps_per_iteration"]
        stops = sorted({max(1, round(share * count)) * steps for share in PLAIN_STOPS})
        stamp = {"stops": stops, "values": values, **shared}
        words = f"plain, KL budget {values['kl_budget']:g}"
        settings = [
            Setting(f"{name}-step{stop}", PLAIN, words, f"{words}, step {stop}", model=f"step-{stop}")
            for stop in stops
        ]
        found.append(Run(name, partial(train_plain, **stamp), settings, stamp, COST["plain iteration"] * count))
    return found


def dial_runs(options: Namespace, shared: dict) -> list[Run]:
    """Models with tags, trained by credit: the best tag with guidance, and the other tags without."""
    found = []
    for name in options.dials:
        values = credit_values(DIALS[name], options)
        words = f"dial, KL budget {values['kl_budget']:g}"
        settings = guided(name, DIAL, DIAL_GUIDANCE, f"{words}, best tag")
        settings += [
            Setting(f"{name}-tag{i + 1}", DIAL, f"{words}, tags", f"{words}, tag {i + 1}", quantile=i)
            for i in range(1, 5)
        ]
        seconds = COST["dial iteration"] * values["num_train_epochs"]
        found.append(
            Run(name, partial(train_nlf, values=values, **shared), settings, {**shared, "values": values}, seconds)
        )
    return found


def contrastive_runs(options: Namespace, shared: dict) -> list[Run]:
    """The contrastive recipe, its students, and the same over other numbers of iterations."""
    settings = guided("contrastive", CONTRASTIVE, GUIDANCE, "contrastive")
    settings += guided("contrastive-middle", CONTRASTIVE, MIDDLE_GUIDANCE, "contrastive, middle tag", MIDDLE)
    contrastive = recipe_run("contrastive", options.recipe, shared, {}, settings, COST["contrastive iteration"])
    students = [student_run(name, STUDENTS[name], contrastive) for name in options.students]
    return [contrastive, *students, *(run for n in options.iterations for run in of_length(n, options.recipe, shared))]


def short_runs(options: Namespace, shared: dict) -> list[Run]:
    """The contrastive recipe cut short, and its plain student."""
    settings = guided("short-middle", CONTRASTIVE, SHORT_GUIDANCE, "contrastive, short, middle tag", MIDDLE)
    short = recipe_run("short", options.recipe, shared, SHORT, settings, COST["short"])
    return [short, student_run("distilled-short", {"guidance_scale": 12.0}, short, "distilled, short, guidance 12")]


def published_runs(options: Namespace, shared: dict) -> list[Run]:
    """The published recipe with guidance; none where it has 0 iterations."""
    if not options.published_iterations:
        return []
    few = {"num_train_epochs": options.published_iterations}
    settings = guided("published", PUBLISHED, GUIDANCE, f"published, {iterations(options.published_iterations)}")
    return [
        recipe_run("published", options.published_recipe, shared, few, settings, COST["published iteration"]),
    ]


def of_length(n: int, recipe: str, shared: dict) -> list[Run]:
    """The contrastive recipe over n iterations, and its plain student."""
    name, words = f"contrastive-{n}", f"contrastive, {iterations(n)}, middle tag"
    settings = guided(f"{name}-middle", CONTRASTIVE, MIDDLE_GUIDANCE, words, MIDDLE)
    teacher = recipe_run(name, recipe, shared, {"num_train_epochs": n}, settings, COST["contrastive iteration"])
    return [teacher, student_run(f"distilled-{n}", {}, teacher, f"distilled, {iterations(n)}")]


def iterations(n: int) -> str:
    return f"{n} iteration{'s' * (n != 1)}"


def student_run(name: str, knobs: dict, teacher: Run, words: str | None = None) -> Run:
    """A student of a tagged model: a plain model, or one that keeps the five tags."""
    kept = knobs.get("keep_tags", False)
    words = words or "distilled, " + (", ".join(f"{key} {value}" for key, value in knobs.items()) or "defaults")
    plain = [Setting(name, DISTILLED, DISTILLED, words.replace("_scale", ""))]
    tags = [Setting(f"tag-{i + 1}", TAGS, TAGS, f"five tags distilled, tag {i + 1}", quantile=i) for i in range(5)]
    stamp = {**teacher.stamp, "distill": asdict(StudentOptions(**knobs))}
    make = partial(train_student, teacher=teacher.name, knobs=knobs)
    return Run(name, make, tags if kept else plain, stamp, COST["five tags" if kept else "distilled"])


def guided(name: str, group: str, scales: Sequence[float], words: str, quantile: int = 0) -> list[Setting]:
    """A tagged model under one tag, guided away from its worst tag by each of these scales."""
    about = {"group": group, "series": words, "quantile": quantile}
    return [
        Setting(f"{name}-g{scale:g}", label=f"{words}, guidance {scale:g}", guidance=scale, **about)
        for scale in scales
    ]


def recipe_run(name: str, recipe: str, shared: dict, flags: dict, settings: list[Setting], cost: float) -> Run:
    """A recipe with changed flags; `cost` is the estimated seconds of one iteration."""
    values = read_recipe(recipe, train_knobs()) | flags
    seconds = cost * (values.get("num_train_epochs") or DEFAULTS["num_train_epochs"].other)
    return Run(name, partial(train_nlf, values=values, **shared), settings, {**shared, "recipe": values}, seconds)


def grpo_runs(options: Namespace, shared: dict) -> list[Run]:
    """GRPO over its grid."""
    found = []
    for rate, beta, batch in product(options.grpo_learning_rates, options.grpo_betas, options.grpo_batches):
        stamp = {"learning_rate": rate, "beta": beta, "batch": batch, "stops": options.grpo_stops, **shared}
        seconds = COST["grpo step of 64"] * batch / 64 * max(options.grpo_stops)
        found.append(run_with_stops("grpo", GRPO, f"lr {rate:g}, beta {beta:g}, {batch}", train_grpo, stamp, seconds))
    return found


def sft_runs(options: Namespace, shared: dict) -> list[Run]:
    """Supervised training on the best of n."""
    found = []
    for rate in options.sft_learning_rates:
        stamp = {"learning_rate": rate, "stops": options.sft_stops, **shared}
        seconds = COST["sft samples"] + COST["sft step"] * max(options.sft_stops)
        found.append(run_with_stops("sft", SFT, f"lr {rate:g}", train_sft, stamp, seconds))
    return found


def run_with_stops(kind: str, group: str, words: str, train: Callable, stamp: dict, seconds: float) -> Run:
    name = f"{kind}-{words}".replace(", ", "-").replace(" ", "")
    series = f"{group}, {words}"
    settings = [
        Setting(f"{name}-step{stop}", group, series, f"{words}, step {stop}", model=f"step-{stop}")
        for stop in stamp["stops"]
    ]
    return Run(name, partial(train, **stamp), settings, stamp, seconds)


# ---- training -----------------------------------------------------------------------------------------------------


def trained(run: Run, seed_folder: Path, seed: int) -> dict[str, float]:
    """Train unless the training is finished, and return the seconds of each model.

    Raises:
        UserError: The finished training had other settings.
    """
    folder = seed_folder / run.name
    done = folder / DONE
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        print(f"training {folder}", flush=True)
        write_text(done, json.dumps({"stamp": run.stamp, "seconds": run.make(folder, seed)}))
    found = json.loads(done.read_text())
    if found["stamp"] != run.stamp:
        raise UserError(
            f"{folder} was trained with {found['stamp']}, expected {run.stamp}; choose another --output_dir"
        )
    return found["seconds"]


def train_nlf(
    folder: Path, seed: int, values: dict, model: str, reward: str, dataset: str, micro_batch: int = STEP
) -> dict:
    values = values | {"model_name_or_path": model, "reward_funcs": [reward], "dataset": dataset, "seed": seed}
    values |= batch_sizes(values.get("per_device_train_batch_size", STEP), micro_batch)
    values |= {"output_dir": str(folder), "eval_strategy": "no", "save_total_limit": None, "report_to": "none"}
    start = time.perf_counter()
    train_from_config(*build(values))
    return {".": time.perf_counter() - start}


def train_plain(folder: Path, seed: int, stops: Sequence[int], **shared) -> dict:
    """Train a plain model; the checkpoints at its stops become the folders of their models, and the others go.

    The seconds of a stop include saving the checkpoints before it.
    """
    start, seconds = time.time(), {}
    train_nlf(folder, seed, **shared)
    for step in stops:
        (checkpoint,) = folder.rglob(f"checkpoint-{step}")
        seconds[f"step-{step}"] = (checkpoint / MARKER).stat().st_mtime - start
        checkpoint.rename(folder / f"step-{step}")
    for checkpoint in [*folder.rglob("checkpoint-*")]:
        shutil.rmtree(checkpoint)
    return seconds


def train_student(folder: Path, seed: int, teacher: str, knobs: dict) -> dict:
    tagged = folder.with_name(teacher)
    before = json.loads((tagged / DONE).read_text())["seconds"]["."]
    start = time.perf_counter()
    distill(model=str(tagged), output_dir=str(folder), seed=seed, **knobs)
    return {".": before + time.perf_counter() - start}


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


def plain_arguments(folder: Path, stops: Sequence[int], learning_rate: float, seed: int) -> dict:
    """The settings of TRL's configs: float32 as in nlf, and no activation checkpointing, which is slower."""
    return {
        **{"output_dir": str(folder), "max_steps": max(stops), "learning_rate": learning_rate, "seed": seed},
        **{"bf16": False, "gradient_checkpointing": False, "save_strategy": "no", "report_to": "none"},
        **{"disable_tqdm": True, "dataloader_pin_memory": False},
    }


def batch_sizes(batch: int, micro_batch: int) -> dict:
    """The settings of a step of `batch` completions, as a whole unless `micro_batch` asks for less than the usual step."""
    micro = min(batch, micro_batch) if micro_batch < STEP else batch
    return {"per_device_train_batch_size": micro, "gradient_accumulation_steps": batch // micro}


def train_grpo(
    folder: Path, seed: int, learning_rate: float, beta: float, batch: int, stops: Sequence[int],
    model: str, reward: str, dataset: str, micro_batch: int = STEP,
) -> dict:  # fmt: skip
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    scorer = resolve_reward(reward)

    def score(prompts, completions, completion_ids, **columns):
        return scorer(prompts, completions, completion_ids)

    clock = Stops(folder, stops, time.perf_counter())
    config = GRPOConfig(
        **plain_arguments(folder, stops, learning_rate, seed),
        beta=beta,
        **batch_sizes(batch, micro_batch),
        num_generations=GENERATIONS,
        max_completion_length=LENGTH,
        temperature=1.0,
    )
    rows = Dataset.from_list([{"prompt": row["prompt"]} for row in load_prompts(dataset)])
    GRPOTrainer(model_path(model), score, args=config, train_dataset=rows, callbacks=[clock]).train()
    return clock.seconds


def train_sft(
    folder: Path, seed: int, learning_rate: float, stops: Sequence[int], model: str, reward: str, dataset: str,
    micro_batch: int = STEP,
) -> dict:  # fmt: skip
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    clock = Stops(folder, stops, time.perf_counter())
    samples, scorer = folder / "generations.jsonl", resolve_reward(reward)
    drawing = replace(FREE, num_generations=GENERATIONS)
    with prompt_sampler(load(model), drawing, seed=seed) as sampler:
        sample_file(samples, sampler, load_prompts(dataset), None, what="to choose from")
    score_file(samples, [scorer])
    chosen = [best_of(row, GENERATIONS, 1, scorer.label) for row in read(samples)]
    pairs = [(row["prompt_ids"], row["completion_ids"][0]) for row in chosen]
    rows = [{"input_ids": prompt + ids, "labels": [-100] * len(prompt) + ids} for prompt, ids in pairs]
    config = SFTConfig(**plain_arguments(folder, stops, learning_rate, seed), **batch_sizes(SFT_BATCH, micro_batch))
    SFTTrainer(model_path(model), config, train_dataset=Dataset.from_list(rows), callbacks=[clock]).train()
    return clock.seconds


def load(model: str) -> Policy:
    """A model for inference, on this machine's accelerator; checkpoints of a run that goes on too."""
    policy = load_policy(model)
    policy.model.to(best_device())
    return policy


# ---- measuring ----------------------------------------------------------------------------------------------------


def measuring_seconds(setting: Setting, num_prompts: int) -> float:
    """Estimate the seconds of measuring a point; the samples of best of n and of its curve are drawn once."""
    drawn = setting.cost * (FILTERED.num_generations + FREE.num_generations)
    if setting.best_of:
        first = setting.id == "base"
        drawn = (max(CHOICES) * FILTERED.num_generations + CURVE.num_generations) if first else 0
    return COST["point"] + num_prompts * drawn * COST["completion"]


def point(setting: Setting, folder: Path, model: str, seconds: float, seed: int | None, yardstick: Yardstick) -> dict:
    """Measure a setting, unless its file holds its numbers for the same prompts, reward and auditor."""
    path = folder / "points" / f"{setting.id}.json"
    stamp = {"prompts": len(yardstick.prompts), "reward": yardstick.reward.label}
    stamp |= {"auditor": yardstick.auditor and yardstick.auditor.label}
    stamp |= {"free_generations": yardstick.free.num_generations}
    found = read_point(path) if path.exists() else {}
    if any(found.get(name) != value for name, value in stamp.items()):
        print(f"measuring {folder.name}, {setting.label}", flush=True)
        values = measured(setting, folder, model, yardstick)
        found = {**asdict(setting), "cost": setting.cost, "seed": seed, "seconds": seconds, **stamp, "metrics": values}
        write_text(path, json.dumps(found, indent=1))
    return found


def read_point(path: Path) -> dict:
    """Read the file of a point, in which older versions call the auditor a judge."""
    found = auditor_names(json.loads(path.read_text()))
    return found | {"metrics": auditor_names(found["metrics"])}


def measured(setting: Setting, folder: Path, model: str, yardstick: Yardstick) -> dict:
    """Measure a point: `metric`, `metric_stderr` and `metric_ci95` of all metrics."""
    policy = load(model)
    filtered, base = samples(setting, folder, policy, "filtered", FILTERED, yardstick), yardstick.base
    score_file(filtered, [each for each in (yardstick.reward, yardstick.auditor) if each])
    measure_file(filtered, base)
    found = metrics.measure(
        scored(filtered, yardstick.reward), scores=[yardstick.reward.label], likelihoods=model_label(base)
    )
    ratios = found.ratios | (audited(filtered, yardstick.auditor) if yardstick.auditor else {})
    if setting.best_of:
        ratios["unfiltered_reward"] = intervals.over_prompts(yardstick.best[:, setting.best_of - 1])
        kl = kl_of_best(setting.best_of)
        free = {"kl_per_completion": kl, "efficiency": 1.0 if kl else None}
    else:
        reward, kl = at_temperature_1(setting, folder, policy, yardstick)
        ratios |= {"unfiltered_reward": reward, "kl_per_completion": kl}
        free = efficiency(yardstick.best, reward, kl)
    return plain_names(with_intervals(replace(found, ratios=ratios))) | free


def at_temperature_1(
    setting: Setting, folder: Path, policy: Policy, yardstick: Yardstick
) -> tuple[intervals.Ratio, intervals.Ratio]:
    """The mean reward, and the KL to the base in nats a completion, of completions at temperature 1 without a filter."""
    path = samples(setting, folder, policy, f"free-{yardstick.free.num_generations}", yardstick.free, yardstick)
    score_file(path, [yardstick.reward])
    return unfiltered_reward(path, yardstick.reward), kl_to_base(path, setting, policy, yardstick.base)


def efficiency(best: np.ndarray, reward: intervals.Ratio, kl: intervals.Ratio) -> dict:
    """`efficiency`, its `_stderr` and `_ci95`; None where the reward is beyond the base's best of n, or no KL is spent."""
    value, stderr, *interval = map(plain, with_interval(best, (reward.num, reward.den), (kl.num, kl.den)))
    return {"efficiency": value, "efficiency_stderr": stderr, "efficiency_ci95": interval}


def base_curve(folder: Path, yardstick: Yardstick, rule: SamplingOptions = CURVE, name: str = "base") -> np.ndarray:
    """`(P, n)`: see `Yardstick.best`; n is the number of completions that `rule` samples, `name` that of their file."""
    setting = Setting(name, BASE, BASE, "the base at temperature 1")
    path = samples(setting, folder, yardstick.base, f"free-{rule.num_generations}", rule, yardstick)
    score_file(path, [yardstick.reward])
    rewards = [row["scores"][yardstick.reward.label]["reward"] for row in read(path)]
    return best_of_rewards(np.array(rewards, dtype=np.float64))


def samples(
    setting: Setting, folder: Path, policy: Policy, name: str, rule: SamplingOptions, yardstick: Yardstick
) -> Path:
    """Sample a setting and return its file; best-of-n chooses among samples of the start that are drawn once."""
    path = folder / "samples" / f"{setting.id}-{name}.jsonl"
    if not setting.best_of:
        tags = policy.scheme.tags if setting.quantile is not None else ()
        tag, negative = (tags[setting.quantile], tags[-1]) if tags else (None, None)
        away = negative if setting.guidance else None
        with prompt_sampler(policy, replace(rule, guidance_scale=setting.guidance, negative_tag=away)) as sampler:
            sample_file(path, sampler, yardstick.prompts, tag, what=setting.label)
    else:
        pool = folder / "samples" / f"pool-{name}.jsonl"
        drawing = replace(rule, num_generations=rule.num_generations * max(CHOICES))
        with prompt_sampler(policy, drawing) as sampler:
            sample_file(pool, sampler, yardstick.prompts, None, what=f"best of {max(CHOICES)}")
        score_file(pool, [yardstick.reward])
        label = yardstick.reward.label
        write_lines(path, (best_of(row, setting.best_of, rule.num_generations, label) for row in read(pool)))
    return path


def scored(path: Path, reward: Reward):
    """Read a file with 1 - reward as the toxicity of each completion, so that any reward can be compared."""
    for row in read(path):
        values = row["scores"][reward.label]["reward"]
        row["scores"][reward.label]["attributes"] = {"toxicity": [None if v is None else 1 - v for v in values]}
        yield row


def audited(path: Path, auditor: Reward) -> dict[str, intervals.Ratio]:
    """The toxicity metrics by the auditor, and the share that it could not score."""
    found = metrics.measure(scored(path, auditor), scores=[auditor.label], corpus_sample=0).ratios
    return {
        f"auditor_{name}": ratio for name, ratio in found.items() if "toxicity" in name or name == "unscored_fraction"
    }


def unfiltered_reward(path: Path, reward: Reward) -> intervals.Ratio:
    """The mean reward at temperature 1."""
    return metrics.measure(scored(path, reward), scores=[reward.label], corpus_sample=0).ratios["reward"]


@torch.inference_mode()
def kl_to_base(path: Path, setting: Setting, policy: Policy, base: Policy) -> intervals.Ratio:
    """KL(policy || base) in nats a completion over the whole vocabulary, along the policy's completions."""
    encoder = PromptEncoder(policy.tokenizer, policy.scheme)
    sums, counts = [], []
    for row in read(path):
        ids = [each for each in row["completion_ids"] if each]
        if not ids:
            raise UserError(f"{path}: no token in any completion of {row['prompt'][:40]!r}")
        feedback = [row["feedback"], row["settings"]["negative_tag"]][: 2 if setting.guidance else 1]
        queries = [encoder.query_ids(words, row["prompt_ids"]) for words in feedback]
        read_after = [logits(policy, query, ids) for query in queries]
        own = teacher_log_probs(
            read_after[0], read_after[-1], setting.guidance,
            kept_ids=policy.eos_token_ids, excluded_ids=policy.added_token_ids,
        )  # fmt: skip
        sums.append(distillation_kl(own, logits(base, row["prompt_ids"], ids)).sum().item())
        counts.append(float(len(row["completion_ids"])))
    return intervals.Ratio(*(torch.tensor(each, dtype=torch.float64).numpy() for each in (sums, counts)))


def logits(policy: Policy, query: list[int], ids: list[list[int]]) -> torch.Tensor:
    """(N, V) logits of the N tokens in several completions of one prompt."""
    inputs = forward_inputs([query] * len(ids), ids, policy.tokenizer.pad_token_id or 0)
    return completion_logits(policy.model, inputs_on(inputs, policy.model.device))
