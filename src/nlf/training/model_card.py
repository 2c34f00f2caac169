"""The model card beside an aligned model: its training, its use in plain transformers, its last figures."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from nlf import __version__
from nlf.data.files import EMBEDDED
from nlf.data.markdown import markdown_table
from nlf.data.prompts import Prompt
from nlf.models.chat import with_feedback
from nlf.models.names import meant, origin_of
from nlf.models.policy import Policy
from nlf.training.config import ALTConfig

CARD = "README.md"
HEAD = """---
library_name: transformers
pipeline_tag: text-generation
{base_model}{license}tags: [nlf, {topic}, alignment]
---
# {name}

"""

TEMPLATE = """\
This model is `{base}`, aligned with textual feedback by `nlf` {version}. It reads a tag {where}: words for the quality
that its completion should have. {how}

{usage}

{tags}

Training took {iterations:g} iterations of {steps} steps, with {batch} rollouts a step and the reward `{rewards}`. The objective's
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

Training took {iterations:g} iterations of {steps} steps, with {batch} rollouts a step and the reward `{rewards}`. Each token was
trained by what it earned of its completion's reward. The objective's coefficients were credit {credit_coef}, {leash}
({kl_direction} KL) and entropy {entropy_coef}. `config.yaml` holds every setting.

{results}
The model learned from the reward alone, so it is better only in what the reward measures.
"""

HOW_TEXT = "Put the best tag and the separator before the prompt:"
HOW_CONVERSATION = (
    "Put the best tag into the system message, after the text that it holds, with an empty line between:"
)
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


def model_card(
    run_dir: Path,
    policy: Policy,
    args: ALTConfig,
    history: Sequence[Mapping[str, Any]],
    rewards: str,
    model: str | None = None,
    auditors: Sequence[str] = (),
    conversational: bool = False,
) -> str:
    """Write the card's Markdown.

    Args:
        history: The logged lines of the run; the card shows the last evaluation among them.
        rewards: The labels of the rewards, joined.
        model: Folder or hub id that the card loads the model from; None = the run's folder.
        auditors: Labels of scorers whose figures come first.
        conversational: The run's prompts are conversations; counts for a model without tags.
    """
    scheme, folder = policy.scheme, model or str(run_dir)
    about = _training(policy, args, rewards) | {
        "results": _results(history, args, auditors, tagged=scheme is not None)
    }
    if scheme is None:
        about["name"] = f"{run_dir.parent.name}/{run_dir.name}"
        about["usage"] = usage(policy, folder, None, conversational)
        return (HEAD + PLAIN_TEMPLATE).format(topic="reinforcement-learning", **about)
    return (HEAD + TEMPLATE).format(
        topic="language-feedback",
        name=run_dir.name,
        where="in the system message" if scheme.conversational else "before the prompt",
        how=HOW_CONVERSATION if scheme.conversational else HOW_TEXT,
        usage=usage(policy, folder, scheme.best, bool(scheme.conversational)),
        tags=markdown_table(["quantile of the reward", "tag"], [[str(q), tag] for q, tag in enumerate(scheme.tags)]),
        **about,
    )


def _training(policy: Policy, args: ALTConfig, rewards: str) -> dict[str, Any]:
    """What every card says of the training: the model's start and the main settings."""
    base, fetched = origin_of(policy.identity.name), meant(policy.identity.name)
    local = not base or base == EMBEDDED or Path(base).exists()  # a card names no folder of the machine
    return {
        "base": (Path(base).name if local else base) or "the base model",
        "base_model": "" if local else f"base_model: {base}\n",
        "license": f"license: {fetched.licence.lower()}\n" if fetched else "",
        "version": __version__,
        "iterations": args.num_train_epochs,
        "steps": args.steps_per_iteration,
        "batch": args.total_batch_size,
        "rewards": rewards,
        **{name: getattr(args, name) for name in COEFFICIENTS},
        "leash": f"beta {args.beta}" if args.kl_budget is None else f"a KL budget of {args.kl_budget:g} nats a token",
    }


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
        example = with_feedback(example, tag) if tag else example
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
    history: Sequence[Mapping[str, Any]], args: ALTConfig, auditors: Sequence[str], tagged: bool = True
) -> str:
    """The figures of the last evaluation as a table, those by auditors first; empty if the run had no evaluation."""
    evaluations = [row for row in history if "eval_reward" in row]
    if not evaluations:
        return ""
    figures = [
        (name.removeprefix("eval_"), value)
        for name, value in evaluations[-1].items()
        if name.startswith("eval_") and not math.isnan(value)  # such as the repetition of single tokens
    ]
    audited = {name: name.endswith(tuple(f"/{label}" for label in auditors)) for name, _ in figures}
    figures.sort(key=lambda figure: not audited[figure[0]])
    rows = [[name + (" (auditor)" if audited[name] else ""), f"{value:.4g}"] for name, value in figures]
    table = markdown_table(["metric", "value"], rows)
    sampling = f"{args.eval_num_generations} completions a prompt, top-p {args.eval_top_p}"
    sampling += ", best tag" if tagged else ""
    return f"Last evaluation ({sampling}):\n\n{table}\n"
