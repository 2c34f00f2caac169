"""What `nlf train --dry_run` shows of logged feedback: its rows, its tags with their shares and edges, and three examples as the
model will read them.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np

from nlf.config import Attribute, TrainOptions, attributes_of
from nlf.data.feedback import Cut
from nlf.data.logged import Logged
from nlf.data.logged_rows import LoggedRow
from nlf.data.markdown import printable
from nlf.data.prompts import PromptRow
from nlf.method.quantize import quantile_edges
from nlf.models.names import MODEL_SOURCES
from nlf.models.sources import model_path
from nlf.rewards.registry import resolve_reward
from nlf.rewards.words import default_tags

SHOWN = 160  # characters of a prompt or a completion


def feedback_rows(options: TrainOptions, logged: Logged, samples: bool) -> dict[str, str]:
    """Names and figures, in the order in which they are shown.

    Args:
        samples: The run samples too.

    Raises:
        UserError: the feedback does not go with the settings, or the model has no tokenizer that reads it.
    """
    from nlf.training.logged import described, dials_of, names_in_pool, rule_of, tags_of

    rewards = [resolve_reward(spec) for spec in options.reward_funcs]
    given = tags_of(logged, options, samples)
    tags = options.tags or (given or default_tags(rewards, options.reward_weights))[0]
    own = attributes_of(options.attributes or []) or (dials_of(logged) if logged.shape.name == "ratings" else [])
    rows = {"feedback": described(logged)}
    rows |= {f"feedback, note {i}": line for i, line in enumerate(logged.lines(), 1)}
    if own:
        names = names_in_pool(logged, options, [each.name for each in own])
        found = [_cut(logged, names.index(dial.name), dial, options) for dial in own if dial.name in names]
    elif logged.shape.name == "completions":
        found = []
        rows["tags"] = f"{', '.join(tags)}: by the rewards, before the first step"
    else:
        found = [_cut(logged, 0, Attribute("", "", tags, rule_of(logged, len(tags))), options)]
    for dial, _, text in found:
        rows[f"tags {dial.name}".strip()] = text
    words = _words(logged, found, options.attribute_template)
    return rows | _examples(options, logged, tags, words)


Dial = tuple[Attribute, np.ndarray, str]  # its quantiles (N,), and its tags with their shares and edges


def _cut(logged: Logged, number: int, dial: Attribute, options: TrainOptions) -> Dial:
    """The quantiles of a reward of the logged rows."""
    values, count = logged.rewards[number], len(dial.tags)
    pool: Any = SimpleNamespace(logged=np.ones(len(values), bool))
    rule = dial.quantile_rule or options.quantile_rule
    quantiles = Cut(lambda _: values, lambda _: values, count, "even", "pool", dial.name, rule)(pool)
    edges = quantile_edges(values, quantiles, count)
    sign = logged.shape.rewards[number].sign if logged.shape.rewards else 1
    parts = []
    for q, tag in enumerate(dial.tags):
        n, edge = int((quantiles == q).sum()), edges[q]
        span = ""
        if edge is not None and not logged.shape.by_word:
            low, high = sorted(sign * value for value in edge)
            span = f", {low:.4g} to {high:.4g}"
        parts.append(f"{tag!r} {n:,} ({n / len(values):.1%}{span})")
    return dial, quantiles, "; ".join(parts)


def _words(logged: Logged, found: list[Dial], joint: str) -> list[str | None]:
    """The feedback of each example."""
    words: list[str | None] = []
    for i, row in enumerate(logged.examples):
        tags = [dial.tags[quantiles[i]] for dial, quantiles, _ in found if quantiles[i] >= 0]
        words.append(row.sentence or joint.join(tags) or None)
    return words


def _examples(options: TrainOptions, logged: Logged, tags: list[str], words: list[str | None]) -> dict[str, str]:
    """The examples with their feedback, through the tokenizer of the model."""
    from nlf.models.chat import set_defaults
    from nlf.models.encoder import PromptEncoder, scheme_for
    from nlf.models.loading import load_tokenizer, loading

    name = options.model_name_or_path
    with loading(f"cannot load the tokenizer of {name!r}", MODEL_SOURCES):
        tokenizer = load_tokenizer(model_path(name), trust_remote_code=options.trust_remote_code)
    chat = bool(logged.conversational)
    rows: list[PromptRow] = [{"prompt": row.prompt, "prompt_id": ""} for row in logged.examples]
    if chat:
        set_defaults(tokenizer, options.chat_template_kwargs)
    scheme = scheme_for(
        tokenizer, rows, tags, template=options.tag_template, separator=options.separator, conversational=chat,
        position=options.feedback_position,
    )  # fmt: skip
    encoder = PromptEncoder(tokenizer, scheme, options.max_prompt_length, options.max_feedback_length)
    encoder.check(rows)
    pairs = zip(logged.examples, words, strict=True)
    return {
        f"example {i}": _example(encoder, row, own, options.max_completion_length)
        for i, (row, own) in enumerate(pairs, 1)
    }


def _example(encoder: Any, row: LoggedRow, words: str | None, most: int) -> str:
    ids = encoder.query_ids(words and encoder.sentence(words), encoder.prompt_ids(row.prompt), row.prompt)
    completion = encoder.completion_ids(row.completion)
    ended = row.ended and len(completion) < most
    end = encoder.tokenizer.eos_token or "" if ended else ""
    shown = encoder.tokenizer.decode(completion[:most])
    return f"{_short(encoder.tokenizer.decode(ids))} ⟶ {_short(shown)}{end}"


def _short(text: str) -> str:
    """A text on one line, its middle left out if it is long."""
    text = printable(text)
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]} … {text[-SHOWN // 2 :]}"
