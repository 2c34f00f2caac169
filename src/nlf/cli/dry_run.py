"""`nlf train --dry_run`: what a run will cost, from its settings, its prompts and the shapes of its weights.

Nothing is loaded but the prompts and, where the model is a folder, the headers of its safetensors files.
"""

import json
import math
import os
from pathlib import Path
from types import SimpleNamespace

from nlf.data.files import ASSETS
from nlf.data.prompts import EMBEDDED, PromptRow, load_prompts
from nlf.rewards.registry import resolve_reward

Shapes = list[tuple[int, ...]]
BYTES = {"float32": 4, "auto": 2, "bfloat16": 2, "float16": 2}


def plan(settings: SimpleNamespace) -> dict[str, str]:
    """Names and figures, in the order they are shown; `settings` holds every knob of `nlf train`.

    Raises:
        UserError: the prompts, the rewards or the model cannot be found.
    """
    s = settings
    prompts = len(prompt_rows(s, s.dataset, s.dataset_train_split, s.max_prompts))
    per_iteration = (prompts if s.prompts_per_iteration is None else s.prompts_per_iteration) * s.num_generations
    steps = s.max_steps if s.max_steps > 0 else math.ceil(s.num_train_epochs) * s.steps_per_iteration
    iterations = math.ceil(steps / s.steps_per_iteration)
    batch = s.per_device_train_batch_size * s.gradient_accumulation_steps * int(os.environ.get("WORLD_SIZE", "1"))
    evaluations = num_evaluations(s, iterations, steps)
    eval_prompts = evaluations and len(prompt_rows(s, s.eval_dataset, s.dataset_test_split, s.max_eval_prompts))
    evaluated = evaluations * eval_prompts * s.eval_num_generations
    sampled = iterations * per_iteration
    tokens = sampled * s.max_completion_length + evaluated * s.eval_max_completion_length
    return {
        "training prompts": f"{prompts:,}",
        "iterations": f"{iterations:,}",
        "completions": f"{per_iteration:,} an iteration, {sampled:,} in all",
        "evaluation completions": f"{evaluated:,} ({evaluations:,} evaluations of {eval_prompts:,} prompts)",
        "tokens sampled": f"at most {tokens:,}",
        "scorer calls": scorer_calls(s, sampled + evaluated),
        "optimizer steps": f"{steps:,} of {batch:,} completions, each run {passes(s)} times",
        **disk(s, sampled, iterations, steps),
    }


def prompt_rows(s: SimpleNamespace, source: str, split: str, limit: int | None) -> list[PromptRow]:
    return load_prompts(source, column=s.dataset_prompt_column, split=split, limit=limit)


def num_evaluations(s: SimpleNamespace, iterations: int, steps: int) -> int:
    """How often the evaluation prompts are sampled."""
    every = s.eval_steps or s.logging_steps
    interval = math.ceil(every * steps) if every < 1 else every
    return {"no": 0, "epoch": iterations}.get(s.eval_strategy, int(steps // interval)) + int(s.eval_on_start)


def scorer_calls(s: SimpleNamespace, completions: int) -> str:
    """Calls of all rewards; for those behind a network also the hours, at most, at `rate_limit`, or at one call a second,
    a usual free quota.
    """
    rewards = [resolve_reward(spec) for spec in s.reward_funcs]
    remote, rate = sum(reward.remote for reward in rewards) * completions, s.rate_limit or 1
    hours = f"; {remote:,} of them remote, {remote / rate / 3600:,.1f} hours at {rate:g} a second" if remote else ""
    return f"{completions * len(rewards):,}{hours}"


def passes(s: SimpleNamespace) -> int:
    """Forward passes for each drawn completion: its own tag, the mirror tag where there is contrast, the reference."""
    return 2 + int(s.contrast_coef != 0)


def disk(s: SimpleNamespace, sampled: int, iterations: int, steps: int) -> dict[str, str]:
    """Sizes of the model, the rollouts and the checkpoints, and of the whole model that vLLM reads."""
    shapes = weight_shapes(s)
    size = sum(math.prod(shape) for shape in shapes)
    trained = adapter_size(shapes, s.lora_r) if s.use_peft else size
    between = {"no": 0, "epoch": 0}.get(s.save_strategy, int(steps // s.save_steps) if s.save_steps >= 1 else 0)
    checkpoints = min(iterations + between, s.save_total_limit or math.inf)
    rollouts = sampled * (150 + 8 * s.max_completion_length)  # a row's prompt and fixed columns; ids and text a token
    width = BYTES.get(s.dtype, 4)
    checkpoint = trained * width * 3  # weights and the two moments of Adam
    handed = {"disk, weights for vLLM": f"about {human(size * width)} while it samples"} if s.sampler == "vllm" else {}
    return {
        "parameters": f"{size:,}" + (f", {trained:,} trained (adapters)" if s.use_peft else ""),
        "disk, rollouts": f"about {human(rollouts)}",
        "disk, checkpoints": f"about {human(checkpoints * checkpoint)} ({checkpoints} of {human(checkpoint)})",
        **handed,
    }


def weight_shapes(s: SimpleNamespace) -> Shapes:
    """Shapes of the model's weights: from its files where it is a folder, else from its configuration."""
    name = s.model_name_or_path
    folder = ASSETS / "lm" if name == EMBEDDED else Path(name)
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if files:
        return [shape for path in files for shape in safetensors_shapes(path)]
    return meta_shapes(str(folder) if folder.is_dir() else name, s.model_revision, s.trust_remote_code)


def safetensors_shapes(path: Path) -> Shapes:
    """The shapes in a file's header: 8 bytes of length, then JSON."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return [tuple(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"]


def meta_shapes(name: str, revision: str, trust_remote_code: bool) -> Shapes:
    """Build the architecture without memory for its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from nlf.errors import UserError

    try:
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the configuration of model {name!r}: {str(error).splitlines()[0]}") from error
    return [tuple(parameter.shape) for parameter in model.parameters()]


def adapter_size(shapes: Shapes, rank: int) -> int:
    """Parameters of LoRA on all linear layers; the largest matrix shapes, the embeddings', have none."""
    matrices = [shape for shape in shapes if len(shape) == 2]
    vocabulary = max((max(shape) for shape in matrices), default=0)
    return rank * sum(sum(shape) for shape in matrices if max(shape) != vocabulary)


def human(size: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
