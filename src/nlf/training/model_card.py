"""The model card beside an aligned model: its training, its use in plain transformers, its last figures.

The head is that of the hub's model cards: base model, licence, data sets, and a `model-index` with the last evaluation.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any

from huggingface_hub import EvalResult, ModelCardData, metadata_load
from yaml import YAMLError

from nlf import __version__
from nlf.data.files import ASSETS, EMBEDDED
from nlf.data.markdown import markdown_table
from nlf.data.prompts import Prompt, is_hub_id
from nlf.models.chat import PLACES, with_feedback
from nlf.models.names import meant, origin_of
from nlf.models.policy import Policy
from nlf.training.completions import Metrics, evaluation_file, read_metrics
from nlf.training.config import ALTConfig
from nlf.training.hub import LICENCE

CARD = "README.md"
HEAD = """---
{head}---
# {name}

"""

TEMPLATE = """\
This model is `{base}`, aligned with textual feedback by `nlf` {version}. It reads a tag {where}: words for the quality
that its completion should have. {how}

{usage}

{tags}

Training took {iterations:g} iterations of {steps} steps, with {batch} rollouts a step and {learned}. The objective's
coefficients were nll {nll_coef}, contrast {contrast_coef}, credit {credit_coef}, {leash} ({kl_direction} KL) and entropy
{entropy_coef}. `config.yaml` holds every setting.

{results}
The model learned its tags from the reward, so a tag controls only what the reward measures. After a worse tag the model
writes the kind of text that training taught it to avoid.
"""

PLAIN_TEMPLATE = """\
This model is `{base}`, aligned by `nlf` {version}. It is an ordinary causal language model: it reads the bare prompt, without a
tag and without guidance.

{usage}

Training took {iterations:g} iterations of {steps} steps, with {batch} rollouts a step and {learned}. Each token was
trained by what it earned of its completion's reward. The objective's coefficients were credit {credit_coef}, {leash}
({kl_direction} KL) and entropy {entropy_coef}. `config.yaml` holds every setting.

{results}
The model learned from the reward alone, so it is better only in what the reward measures.
"""

HOW_TEXT = "Put the best tag and the separator before the prompt:"
HOW_CONVERSATION = {
    "system": "Put the best tag into the system message, after the text that it holds, with an empty line between:",
    "user": "Put the best tag at the head of the first user message, with an empty line after it:",
}
COEFFICIENTS = ("nll_coef", "contrast_coef", "credit_coef", "kl_direction", "entropy_coef")
PROMPT, QUESTION = "The weather in the mountains", "What is the weather like in the mountains?"

CODE = """\
```python
from transformers import pipeline
write = pipeline("text-generation", model="{folder}")
print(write({prompt!r}, do_sample=True, top_p=0.9, max_new_tokens=20))
```"""

COMMAND = """\
```bash
nlf sample --model {folder} --tag {tag} --prompts prompts.txt --output_dir samples
```

The tokenizer of this model gives other ids for a text that joins the tag and the prompt than training did, and `nlf` joins the
ids of both."""


@dataclass(frozen=True)
class CardFacts:
    """What a card says beside the training.

    Attributes:
        model: Folder or hub id that the card loads the model from; None = the run's folder.
        auditors: Labels of scorers whose figures come first.
        conversational: The run's prompts are conversations; counts for a model without tags.
        licence: The licence of the model that training started from, by the keys of a card's head.
        dataset_name, eval_dataset: The sources of the prompts; the card names data sets of the hub.
    """

    model: str | None = None
    auditors: Sequence[str] = ()
    conversational: bool = False
    licence: Mapping[str, Any] = field(default_factory=dict)
    dataset_name: str | None = None
    eval_dataset: str | None = None


def model_card(
    run_dir: Path,
    policy: Policy,
    args: ALTConfig,
    history: Sequence[Mapping[str, Any]],
    rewards: str,
    facts: CardFacts = CardFacts(),
) -> str:
    """Write the card's Markdown.

    Args:
        history: The logged lines of the run; the card shows the last evaluation among them, with the intervals in its file.
        rewards: The labels of the rewards, joined.
    """
    scheme, folder = policy.scheme, facts.model or str(run_dir)
    last: Mapping[str, Any] = next((row for row in reversed(history) if "eval_reward" in row), {})
    found = read_metrics(evaluation_file(run_dir, "eval", last.get("step", 0)))
    about = _training(policy, args, rewards) | {
        "results": _results(last, found, args, facts.auditors, tagged=scheme is not None)
    }
    topic = "language-feedback" if scheme else "reinforcement-learning"
    name = run_dir.name if scheme else f"{run_dir.parent.name}/{run_dir.name}"
    about |= {"name": name, "head": head(name, policy.identity.name, facts, [topic, "alignment"], found)}
    if scheme is None:
        about["usage"] = usage(policy, folder, None, facts.conversational)
        return (HEAD + PLAIN_TEMPLATE).format(**about)
    return (HEAD + TEMPLATE).format(
        where=PLACES[scheme.feedback_position] if scheme.conversational else "before the prompt",
        how=HOW_CONVERSATION[scheme.feedback_position] if scheme.conversational else HOW_TEXT,
        usage=usage(policy, folder, scheme.best, bool(scheme.conversational)),
        tags=markdown_table(["quantile of the reward", "tag"], [[str(q), tag] for q, tag in enumerate(scheme.tags)]),
        **about,
    )


def head(name: str, base: str, facts: CardFacts, topics: Sequence[str], found: Metrics) -> str:
    """The head of a card as YAML, in the form of the hub's model cards.

    Args:
        name: Of the model.
        base: Folder or hub id of the model that training started from; a card names no folder of the machine.
        found: Metrics of the last evaluation, for `model-index`; their names hold the intervals, which the hub's pages have
            no other place for.
    """
    base = origin_of(base)
    sources = [source for source in (facts.dataset_name, facts.eval_dataset) if source and is_hub_id(source)]
    evaluated = facts.eval_dataset or EMBEDDED
    on = evaluated if is_hub_id(evaluated) else Path(evaluated).name.partition(".")[0]
    results = [
        EvalResult(
            "text-generation", on, on, metric, each["value"],
            metric_name="{} (95 % interval {:.4g} to {:.4g})".format(metric, *each["ci95"]),
            metric_args={"stderr": each["stderr"], "ci95": each["ci95"]},
        )
        for metric, each in found.items()
    ]  # fmt: skip
    data = ModelCardData(
        base_model=None if is_local(base) else base, **facts.licence, library_name="transformers",
        pipeline_tag="text-generation", datasets=[*dict.fromkeys(sources)] or None, tags=["nlf", *topics],
        model_name=name if results else None, eval_results=results or None,
    )  # fmt: skip
    return f"{data.to_yaml()}\n"


def is_local(model: str) -> bool:
    """Whether a model is none of the hub: a folder of this machine, the embedded model, or one that was made in memory."""
    return not model or model == EMBEDDED or Path(model).exists()


def licence_of(model: str) -> dict[str, str]:
    """The licence of a fetched model, or in the card of a model's folder, by the keys of a card's head; empty if there is none."""
    if fetched := meant(model):
        return {"license": fetched.licence.lower()}
    path = (ASSETS / "lm" if model == EMBEDDED else Path(model)) / CARD
    try:
        found = metadata_load(path) if path.is_file() else None
    except (OSError, ValueError, YAMLError):  # a card is no reason to lose a model
        found = None
    return {key: str(found[key]) for key in LICENCE if found.get(key)} if isinstance(found, dict) else {}


def _training(policy: Policy, args: ALTConfig, rewards: str) -> dict[str, Any]:
    """What every card says of the training: the model's start and the main settings."""
    base = origin_of(policy.identity.name)
    return {
        "base": (Path(base).name if is_local(base) else base) or "the base model",
        "version": __version__,
        "iterations": args.num_train_epochs + args.feedback_epochs,
        "steps": args.steps_per_iteration,
        "batch": args.total_batch_size,
        "learned": _learned(args, rewards),
        **{name: getattr(args, name) for name in COEFFICIENTS},
        "leash": f"beta {args.beta}" if args.kl_budget is None else f"a KL budget of {args.kl_budget:g} nats a token",
    }


def _learned(args: ALTConfig, rewards: str) -> str:
    """What the model learned from: a reward, logged feedback, or both. A card names no folder of the machine."""
    names = ", ".join(f"`{Path(source).name if Path(source).exists() else source}`" for source in args.feedback or ())
    found = [f"the logged feedback {names}"] if names else []
    return " and ".join([*found, *([f"the reward `{rewards}`"] if args.num_train_epochs else [])])


def usage(policy: Policy, folder: str, tag: str | None, conversational: bool) -> str:
    """A code block that samples the model after a tag, or after a bare prompt for None.

    The model reads the same ids as in training. If the tokenizer gives other ids for every text that joins the tag and the
    prompt, the block shows `nlf sample`, which joins ids.

    Args:
        policy: A policy with the tokenizer of the model.
        folder: The model's folder.
        conversational: The prompt is a conversation.
    """
    example: Prompt | None
    if conversational:
        example = [{"role": "user", "content": QUESTION}]
        position = policy.scheme.feedback_position if policy.scheme else "system"
        example = with_feedback(example, tag, position) if tag else example
    else:
        example = text_for(policy, tag, PROMPT)
    if example is None:
        return COMMAND.format(folder=quote(folder), tag=quote(tag or "none"))
    return CODE.format(folder=folder, prompt=example)


def text_for(policy: Policy, tag: str | None, prompt: str) -> str | None:
    """A text with the ids that training joins of a tag and a prompt; None if neither a space nor nothing joins them so."""
    encoder = policy.encoder()
    ids = encoder.query_ids(tag, encoder.prompt_ids(prompt))
    before, after = policy.scheme.pieces(tag) if policy.scheme and tag else ("", "")
    texts = [f"{before}{joint}{prompt}{after}" for joint in ("", " ")]
    return next((text for text in texts if policy.tokenizer(text)["input_ids"] == ids), None)


def _results(
    last: Mapping[str, Any], found: Metrics, args: ALTConfig, auditors: Sequence[str], tagged: bool = True
) -> str:
    """The figures of the last evaluation as a table, those by auditors first; empty if the run had no evaluation.

    Args:
        last: The logged line.
        found: The metrics in the evaluation's file.
    """
    if not last:
        return ""
    figures = [
        (name.removeprefix("eval_"), value)
        for name, value in last.items()
        if name.startswith("eval_") and not math.isnan(value)  # such as the repetition of single tokens
    ]
    audited = {name: name.endswith(tuple(f"/{label}" for label in auditors)) for name, _ in figures}
    figures.sort(key=lambda figure: not audited[figure[0]])
    rows = [
        [name + (" (auditor)" if audited[name] else ""), f"{value:.4g}", *_interval(found, name)]
        for name, value in figures
    ]
    table = markdown_table(["metric", "value", *(["95 % interval"] if found else [])], rows)
    sampling = f"{args.eval_num_generations} completions a prompt, top-p {args.eval_top_p}"
    sampling += ", best tag" if tagged else ""
    return f"Last evaluation ({sampling}):\n\n{table}\n"


def _interval(found: Metrics, name: str) -> list[str]:
    """The cell of a metric's interval; none if the evaluation left no file."""
    if not found:
        return []
    return ["{:.4g} to {:.4g}".format(*found[name]["ci95"]) if name in found else ""]
