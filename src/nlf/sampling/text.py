"""The text of completions: of whole ones, and of one that grows token by token.

Tokenizers such as Llama 2's leave out the space before the first word of a text, so a completion that is decoded alone would
be glued to its prompt. It is decoded after the last tokens of its prompt, the seam, whose text is then taken off.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from nlf.data.prompts import Prompt
from nlf.models.chat import is_started

UNFINISHED = "\ufffd"  # what an incomplete character is decoded as
SEAM = 8  # last tokens of a prompt that are decoded with a completion


def seam_of(prompt: Prompt, ids: Sequence[int]) -> list[int]:
    """The last tokens of a prompt whose text the completion continues; none where it is a message of its own."""
    return list(ids[-SEAM:]) if isinstance(prompt, str) or is_started(prompt) else []


def decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[Sequence[int]]) -> list[str]:
    """The text of each list of token ids, without special tokens."""
    return tokenizer.batch_decode([list(each) for each in ids], skip_special_tokens=True)


def completion_texts(
    tokenizer: PreTrainedTokenizerBase, seams: Sequence[list[int]], completions: Sequence[list[int]]
) -> list[str]:
    """The text of each completion: after a text prompt, the text that continues it.

    Args:
        seams: For each completion the seam of its prompt.
    """
    alone, before = decoded(tokenizer, completions), decoded(tokenizer, seams)
    joined = decoded(tokenizer, [seam + ids for seam, ids in zip(seams, completions, strict=True)])
    return [
        whole.removeprefix(start) if start and whole.startswith(start) else text
        for text, start, whole in zip(alone, before, joined, strict=True)
    ]


class TextStream:
    """The text of a completion while it grows, in pieces that together are its `completion_texts`.

    A piece is given once its last character is whole. Only the last tokens are decoded again for each piece.

    Attributes:
        text: All pieces so far.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, seam: list[int]):
        self.tokenizer, self.seam, self.ids = tokenizer, seam, list(seam)
        self.begin, self.end, self.text = 0, len(seam), ""

    def add(self, tokens: Sequence[int]) -> str:
        """The piece of text that more tokens finish; perhaps empty."""
        self.ids += tokens
        known, longer = decoded(self.tokenizer, [self.ids[self.begin : self.end], self.ids[self.begin :]])
        if longer.endswith(UNFINISHED) or len(longer) <= len(known):
            return ""
        self.begin, self.end = self.end, len(self.ids)
        self.text += longer[len(known) :]
        return longer[len(known) :]

    def finish(self) -> str:
        """The last piece, when no token follows."""
        (whole,) = completion_texts(self.tokenizer, [self.seam], [self.ids[len(self.seam) :]])
        piece = whole.removeprefix(self.text) if whole.startswith(self.text) else ""
        self.text += piece
        return piece
