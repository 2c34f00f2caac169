"""How the points of the frontier are measured: samples, scores, perplexity, KL, efficiency and the loss on neutral text.

Every setting is measured as it is used: with its tag or its prefix before the prompt, its guidance, its steering vector. The
base reads the bare prompt: in the perplexity, and in KL(setting ‖ base). All of it in float32.
"""

import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from best_of import best_of_rewards, kl_of_best, with_interval
from frontier_points import BASE, Setting, auditor_names, best_of, plain_names
from frontier_training import LENGTH, load, steered

from nlf.config import SamplingOptions
from nlf.data.files import write_text
from nlf.data.generations import append, read, write_lines
from nlf.data.prompts import load_prompts
from nlf.errors import UserError
from nlf.evaluation import intervals, metrics
from nlf.evaluation.evaluate import plain, with_intervals
from nlf.evaluation.perplexity import measure_file, model_label
from nlf.evaluation.sample import prompt_sampler, sample_file
from nlf.evaluation.score import score_file
from nlf.method.losses import distillation_kl, teacher_log_probs
from nlf.method.tags import FEEDBACK, PROMPT, TagScheme
from nlf.models.encoder import PromptEncoder, forward_inputs, inputs_on
from nlf.models.policy import Policy
from nlf.models.reading import completion_logits
from nlf.rewards import Reward
from nlf.rewards.registry import resolve_reward

FILTERED = SamplingOptions(num_generations=25, max_completion_length=LENGTH, top_p=0.9)
FREE = SamplingOptions(num_generations=16, max_completion_length=LENGTH)  # temperature 1, no top-k, no top-p
CURVE = replace(FREE, num_generations=64)  # of the base: best of n is known up to this n
MOST = 8  # n of the samples from which best of n is chosen
NEUTRAL_LINES, NEUTRAL_WORDS, NEUTRAL_TOKENS = 100, 6, 64  # lines of neutral text, their least words and most tokens
OTHER = "The text:"  # a scheme of tags has two; a prefix is the first, and this one is not used
POINTS = "points.jsonl"  # a line for each point when it is measured


@dataclass(frozen=True)
class Yardstick:
    """The prompts and models that measure all points.

    Attributes:
        best: `(P, n)` the expected reward of best of 1, 2, … n completions of each prompt by the base at temperature 1.
        free: The sampling rule at temperature 1, for the reward and the KL there.
        most: The largest n of best of n.
        neutral: Lines of neutral text, and their source; none = not measured.
        neutral_nats: `(L,)` nats of each line under the base.
    """

    reward: Reward
    auditor: Reward | None
    base: Policy
    prompts: list[dict]
    best: np.ndarray | None = None
    free: SamplingOptions = field(default_factory=lambda: FREE)
    most: int = MOST
    neutral: Sequence[str] = ()
    neutral_source: str | None = None
    neutral_nats: np.ndarray | None = None

    def stamp(self) -> dict:
        """What the figures of a point depend on, the model apart."""
        about = {"prompts": len(self.prompts), "reward": self.reward.label}
        about |= {"auditor": self.auditor and self.auditor.label}
        return about | {"free_generations": self.free.num_generations}


def yardstick_of(options: Namespace, base: Policy, prompts: str) -> Yardstick:
    """The yardstick of the flags `reward`, `auditor`, `num_prompts` and `free_generations`, without the curve of best of n."""
    return Yardstick(
        resolve_reward(options.reward),
        None if options.auditor == "none" else resolve_reward(options.auditor),
        base,
        load_prompts(prompts, split="test", limit=options.num_prompts),
        free=replace(FREE, num_generations=options.free_generations),
    )


def with_neutral_text(yardstick: Yardstick, source: str) -> Yardstick:
    """The yardstick with the first long lines of a text.

    Raises:
        UserError: The text cannot be read, or has no long line.
    """
    texts = (row["prompt"] for row in load_prompts(source))
    lines = [text for text in texts if isinstance(text, str) and len(text.split()) >= NEUTRAL_WORDS][:NEUTRAL_LINES]
    if not lines:
        raise UserError(
            f"{source}: no line of {NEUTRAL_WORDS} words or more; expected neutral text, one paragraph a line"
        )
    return replace(yardstick, neutral=lines, neutral_source=source)


# ---- points ---------------------------------------------------------------------------------------------------------


def point(setting: Setting, folder: Path, model: str, seconds: float, seed: int | None, yardstick: Yardstick) -> dict:
    """Measure a setting, unless its file holds its numbers for the same prompts, reward and auditor."""
    path, stamp = folder / "points" / f"{setting.id}.json", yardstick.stamp()
    found, known = read_point(path) if path.exists() else {}, True
    if any(found.get(name) != value for name, value in stamp.items()):
        print(f"measuring {folder.name}, {setting.label}", flush=True)
        values, known = measured(setting, folder, model, yardstick), False
        found = {**asdict(setting), "cost": setting.cost, "seed": seed, "seconds": seconds, **stamp, "metrics": values}
    if yardstick.neutral and found.get("neutral_text") != yardstick.neutral_source and setting.best_of < 2:
        values, known = neutral_figures(setting, model, yardstick), False
        found |= {"neutral_text": yardstick.neutral_source, "metrics": found["metrics"] | values}
    if not known:
        write_text(path, json.dumps(found, indent=1))
        append(folder.parent / POINTS, [found])
    return found


def read_point(path: Path) -> dict:
    """Read the file of a point, in which older versions call the auditor a judge."""
    found = auditor_names(json.loads(path.read_text()))
    return found | {"metrics": auditor_names(found["metrics"])}


def points_of(output_dir: Path, yardstick: Yardstick) -> list[dict]:
    """All points of a folder that this yardstick measured, whichever process or command made them."""
    found = [read_point(path) for path in output_dir.glob("*/points/*.json")]
    return [each for each in found if all(each.get(name) == value for name, value in yardstick.stamp().items())]


def policy_of(setting: Setting, model: str, base: Policy) -> Policy:
    """The model of a setting, with what the setting adds to it."""
    if setting.strength:
        return steered(load(base.identity.name), Path(model), setting.strength)
    policy = load(model)
    if setting.prefix:
        policy = replace(policy, scheme=TagScheme((setting.prefix, OTHER), f"{FEEDBACK}\n{PROMPT}"))
    return policy


def words_before(setting: Setting, policy: Policy) -> tuple[str | None, str | None]:
    """The words before each prompt, and those that guidance moves away from."""
    tags = policy.scheme.tags if policy.scheme else ()
    if setting.quantile is None or not tags:
        return None, None
    return tags[setting.quantile], tags[-1] if setting.guidance else None


def measured(setting: Setting, folder: Path, model: str, yardstick: Yardstick) -> dict:
    """Measure a point: `metric`, `metric_stderr` and `metric_ci95` of all metrics."""
    policy, base = policy_of(setting, model, yardstick.base), yardstick.base
    filtered = samples(setting, folder, policy, "filtered", FILTERED, yardstick)
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


# ---- samples and their figures --------------------------------------------------------------------------------------


def samples(
    setting: Setting, folder: Path, policy: Policy, name: str, rule: SamplingOptions, yardstick: Yardstick
) -> Path:
    """Sample a setting and return its file; best-of-n chooses among samples of the start that are drawn once."""
    path = folder / "samples" / f"{setting.id}-{name}.jsonl"
    if setting.best_of:
        return chosen_samples(setting, path, policy, name, rule, yardstick)
    words, away = words_before(setting, policy)
    with prompt_sampler(policy, replace(rule, guidance_scale=setting.guidance, negative_tag=away)) as sampler:
        sample_file(path, sampler, yardstick.prompts, words, what=setting.label)
    return path


def chosen_samples(
    setting: Setting, path: Path, policy: Policy, name: str, rule: SamplingOptions, yardstick: Yardstick
) -> Path:
    """Write the best of every n samples of the start into the file `path`."""
    most = yardstick.most
    pool = path.with_name(f"pool-{name}.jsonl" if most == MOST else f"pool-{name}-{most}.jsonl")
    with prompt_sampler(policy, replace(rule, num_generations=rule.num_generations * most)) as sampler:
        sample_file(pool, sampler, yardstick.prompts, None, what=f"best of {most}")
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
    """KL(setting ‖ base) in nats a completion over the whole vocabulary, along the setting's completions.

    The setting reads its words before the prompt, the base reads the bare prompt.
    """
    sums, counts = [], []
    for row in read(path):
        ids = [each for each in row["completion_ids"] if each]
        if not ids:
            raise UserError(f"{path}: no token in any completion of {row['prompt'][:40]!r}")
        words = row["feedback"], row["settings"]["negative_tag"]
        own = log_probs(policy, setting.guidance, words, row["prompt_ids"], ids)
        sums.append(distillation_kl(own, logits(base, row["prompt_ids"], ids)).sum().item())
        counts.append(float(len(row["completion_ids"])))
    return intervals.Ratio(*(torch.tensor(each, dtype=torch.float64).numpy() for each in (sums, counts)))


# ---- neutral text ---------------------------------------------------------------------------------------------------


def neutral_figures(setting: Setting, model: str, yardstick: Yardstick) -> dict:
    """`neutral_ratio`, its `_stderr` and its `_ci95`: nats a token on neutral text over the base's, with an interval over lines."""
    own = neutral_nats(setting, policy_of(setting, model, yardstick.base), yardstick.neutral)
    return with_intervals(metrics.Measured({"neutral_ratio": intervals.Ratio(own, yardstick.neutral_nats)}, {}, {}, 0))


@torch.inference_mode()
def neutral_nats(setting: Setting, policy: Policy, lines: Sequence[str]) -> np.ndarray:
    """`(L,)` nats of each line after its first token, of at most `NEUTRAL_TOKENS` tokens."""
    encoder, words, found = policy.encoder(), words_before(setting, policy), []
    for line in lines:
        ids = encoder.prompt_ids(line)[: len(encoder.prefix) + NEUTRAL_TOKENS]
        start, rest = ids[: len(encoder.prefix) + 1], ids[len(encoder.prefix) + 1 :]
        own = log_probs(policy, setting.guidance, words, start, [rest])  # (T, V)
        found.append(-own.gather(1, torch.tensor(rest, device=own.device)[:, None]).sum().item())
    return np.array(found)


# ---- logits ---------------------------------------------------------------------------------------------------------


def log_probs(
    policy: Policy, guidance: float, words: tuple[str | None, str | None], prompt: list[int], ids: list[list[int]]
) -> torch.Tensor:
    """(N, V) log-probabilities that a setting samples from, at the N tokens in several completions of one prompt."""
    encoder = PromptEncoder(policy.tokenizer, policy.scheme)
    queries = [encoder.query_ids(each, prompt) for each in words[: 2 if guidance else 1]]
    read_after = [logits(policy, query, ids) for query in queries]
    return teacher_log_probs(
        read_after[0], read_after[-1], guidance, kept_ids=policy.eos_token_ids, excluded_ids=policy.added_token_ids
    )


def logits(policy: Policy, query: list[int], ids: list[list[int]]) -> torch.Tensor:
    """(N, V) logits of the N tokens in several completions of one prompt."""
    inputs = forward_inputs([query] * len(ids), ids, policy.tokenizer.pad_token_id or 0)
    return completion_logits(policy.model, inputs_on(inputs, policy.model.device))
