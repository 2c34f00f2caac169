"""Tags: the words for quantiles, and the template that puts feedback before a prompt.

Feedback is a tag, several tags joined, or a judge's sentence. The published code has five fixed tags, one fixed
template and a separate setting for the number of quantiles. Here there is one quantile per tag.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import permutations
from pathlib import Path

from nlf.errors import UserError

DEGREES = ("Lowest", "Low-Moderate", "Moderate", "High-Moderate", "Maximum")  # the published code's, for toxicity
CHOSEN = {2: (0, 4), 3: (0, 2, 4), 4: (0, 1, 3, 4), 5: (0, 1, 2, 3, 4)}  # the degrees of so many tags


def degrees(noun: str, count: int = 5) -> tuple[str, ...]:
    """Tags from the lowest to the highest degree of something: "Lowest Toxicity" … "Maximum Toxicity"."""
    if count in CHOSEN:
        return tuple(f"{DEGREES[i]} {noun}" for i in CHOSEN[count])
    return tuple(f"{noun} {i}" for i in range(count))


DEFAULT_TAGS = degrees("Toxicity")
SEPARATOR = "<|separator|>"
FILE = "tags.json"
FEEDBACK, PROMPT = "{feedback}", "{prompt}"
POSITIONS = (
    "system",
    "user",
)  # where a conversation holds its feedback: the system message, or the first user message


@dataclass(frozen=True)
class TagScheme:
    """The tags, best first (the best is quantile 0), the template and the separator token.

    If the template does not contain the separator, `separator` becomes None.

    Attributes:
        conversational: Prompts are conversations, one of whose messages holds the tag, so that template and separator are
            not used; False = prompts are texts; None = unknown.
        feedback_position: Where a conversation holds the tag, one of `POSITIONS`.

    Raises:
        UserError: fewer than two tags; an empty or repeated tag; a template without exactly one `{feedback}` and, after it,
            one `{prompt}`; tags that the template cannot tell apart; an unknown position.
    """

    tags: tuple[str, ...] = DEFAULT_TAGS
    template: str = FEEDBACK + SEPARATOR + PROMPT
    separator: str | None = SEPARATOR
    conversational: bool | None = None
    feedback_position: str = POSITIONS[0]

    def __post_init__(self) -> None:
        if self.feedback_position not in POSITIONS:
            raise UserError(f"feedback_position {self.feedback_position!r}: expected {' or '.join(POSITIONS)}")
        object.__setattr__(self, "tags", tuple(self.tags))
        _check_tags(self.tags)
        _check_template(self.template)
        if not self.separator or self.separator not in self.template:
            object.__setattr__(self, "separator", None)
        _check_readable(self.tags, self._parts()[1], self.separator)

    @property
    def num_quantiles(self) -> int:
        return len(self.tags)

    @property
    def best(self) -> str:
        return self.tags[0]

    @property
    def worst(self) -> str:
        return self.tags[-1]

    def mirror(self, quantile: int, coin: int) -> int:
        """The quantile to contrast with: K-1-q. For the middle of an odd K, the best if `coin` is even, else the worst."""
        return mirror(quantile, self.num_quantiles, coin)

    def pieces(self, feedback: str) -> tuple[str, str]:
        """The text before and the text after the prompt, tokenized separately so that the prompt keeps its token ids."""
        head, middle, tail = self._parts()
        return head + feedback + middle, tail

    def render(self, feedback: str | None, prompt: str) -> str:
        """The text that the policy reads: the prompt with its feedback, or the bare prompt."""
        if feedback is None:
            return prompt
        before, after = self.pieces(feedback)
        return before + prompt + after

    def quantile_of(self, tag: str) -> int:
        """The quantile of a tag.

        Raises:
            UserError: the scheme has no such tag.
        """
        if tag not in self.tags:
            raise UserError(f"unknown tag {tag!r}; this model's tags are {', '.join(map(repr, self.tags))}")
        return self.tags.index(tag)

    def to_json(self, added_tokens: Sequence[str] = ()) -> str:
        """The contents of a model's `tags.json`.

        Args:
            added_tokens: The tokens that training added to the model.
        """
        fields = {**asdict(self), "added_tokens": list(added_tokens)}
        return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def load(cls, path: str | Path) -> "TagScheme":
        """Read the `tags.json` of a model's folder, or the file itself.

        Raises:
            UserError: no such file, or not a tag scheme.
        """
        return read_file(path)[0]

    def _parts(self) -> tuple[str, str, str]:
        """The template's text before, between and after its two fields. Other braces are plain text."""
        head, rest = self.template.split(FEEDBACK)
        middle, tail = rest.split(PROMPT)
        return head, middle, tail


def read_file(path: str | Path) -> tuple[TagScheme, list[str] | None]:
    """Read the `tags.json` of a model's folder, or the file itself.

    Returns:
        The tags, and the tokens that training added to the model; None if the file does not name these tokens, as in
        older versions.

    Raises:
        UserError: no such file, or not a tag scheme.
    """
    path = Path(path)
    path = path if path.is_file() else path / FILE
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        known = tuple(fields["tags"]), fields["template"], fields["separator"], fields.get("conversational")
        position = fields.get("feedback_position", POSITIONS[0])  # older versions knew the system message only
        added = fields.get("added_tokens")
        return TagScheme(*known, position), None if added is None else [str(token) for token in added]
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a folder with a model that nlf has trained") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a tag scheme ({error}); expected tags, template and separator") from error


def mirror(quantile: int, num_quantiles: int, coin: int) -> int:
    """K-1-q. For the middle of an odd K, 0 if `coin` is even, else K-1."""
    last = num_quantiles - 1
    if 2 * quantile == last:
        return last * (coin & 1)
    return last - quantile


def diagonal(tags: Sequence[Sequence[str]], joint: str) -> list[str]:
    """Joined tags of several attributes, from the best tags of all attributes to the worst tags of all.

    Args:
        tags: The tags of each attribute, best first. The result is as long as the longest list.
        joint: Text between two tags.
    """
    last = max(map(len, tags)) - 1
    return [joint.join(each[(2 * q * (len(each) - 1) + last) // (2 * last)] for each in tags) for q in range(last + 1)]


def _check_tags(tags: Sequence[str]) -> None:
    if any(not isinstance(tag, str) or not tag.strip() for tag in tags):
        raise UserError(f"tags {list(tags)}: every tag must be a non-empty text")
    if len(tags) < 2:
        raise UserError(f"tags {list(tags)}: expected at least two tags, best first: one for each quantile")
    repeated = sorted({tag for tag in tags if tags.count(tag) > 1})
    if repeated:
        raise UserError(f"tag {repeated[0]!r} is given more than once; every quantile needs its own tag")


def _check_template(template: str) -> None:
    counts = template.count(FEEDBACK), template.count(PROMPT)
    if counts != (1, 1) or template.index(FEEDBACK) > template.index(PROMPT):
        raise UserError(f"tag template {template!r}: expected {FEEDBACK} once and, after it, {PROMPT} once")


def _check_readable(tags: Sequence[str], middle: str, separator: str | None) -> None:
    for tag in tags:
        if separator and separator in tag:
            raise UserError(
                f"tag {tag!r} contains the separator {separator!r}; choose other words or another separator"
            )
    for tag, other in permutations(tags, 2):
        if (other + middle).startswith(tag + middle):
            raise UserError(
                f"tag {other!r} begins like {tag!r} and the template has nothing to tell them apart; "
                f"put text between {FEEDBACK} and {PROMPT}, or choose other tags"
            )
