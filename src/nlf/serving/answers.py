"""`nlf score FILE --as perspective`: Perspective's answer to each text of a file, one JSON line for each, in a file of its own.

The lines are in the order of the texts. `clientToken` is the number of the text's row, from 1; of generations also the
number of the completion, `3.1`. A text that cannot be scored gets Google's error in the place of an answer, by the rules
of the server (`protocol.read`). A journal beside the answers keeps finished blocks, as with `nlf score`.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nlf.config import ScoreOptions, remote_options
from nlf.data.files import refuse_other
from nlf.data.generations import ANSWERS, LineFormat, Row, annotate, files_of, write_lines
from nlf.data.locks import locked_files
from nlf.data.markdown import text_table
from nlf.data.progress import progress_bar
from nlf.errors import UserError
from nlf.evaluation.score_files import Form, form_of
from nlf.rewards.registry import configure
from nlf.serving.protocol import Answer, Question, Refused, answer, error_type, read
from nlf.serving.scoring import AttributeScorer, scorer_of

KIND = "answers"  # of measurement, in the journal
REASONS = ("COMMENT_EMPTY", "COMMENT_TOO_LONG", "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE")


def answers_command(options: ScoreOptions) -> str:
    """`nlf score FILE --as perspective`: write the answers, and return a table of counts."""
    paths = files_of(options.path)
    if options.output and len(paths) > 1:
        raise UserError(f"output: {options.path} has {len(paths)} files; name one of them, or leave out --output")
    targets = [Path(options.output or path.with_name(path.name + ANSWERS)) for path in paths]
    for path, target in zip(paths, targets, strict=True):
        if target.resolve() == path.resolve():
            raise UserError(f"output: {target} is the file of the texts; choose another name")
        refuse_other(target, is_answers)
    configure(remote_options(options))
    scorer = scorer_of(options.reward_funcs)
    with locked_files(*targets):
        found = {
            str(target): write_answers(path, target, form_of(path, options.text_column), scorer, options.batch_size)
            for path, target in zip(paths, targets, strict=True)
        }
    return table(found)


def is_answers(text: str) -> bool:
    """Whether a text is the content of a file of answers."""
    try:
        first = json.loads(text.partition("\n")[0])
    except ValueError:
        return False
    return isinstance(first, dict) and bool({"attributeScores", "languages", "error"} & first.keys())


def write_answers(path: Path, target: Path, form: Form, scorer: AttributeScorer, block: int = 64) -> Counter[str]:
    """Write the answers to the texts of a file, and count the texts and the reasons why some have no score.

    Args:
        block: Rows that are scored and journaled together.

    Raises:
        UserError: the file is empty or broken, or the answers cannot be written.
    """
    total = sum(len(form.texts(row)) for row in form.read(path))
    if not total:
        raise UserError(f"{path}: no texts in it; expected at least one; is it the right file?")
    counts = Counter(texts=total)

    def measure(rows: list[Row]) -> list[Mapping[str, Any]]:
        found = iter(answers_to([text for row in rows for text in row["texts"]], scorer))
        return [{"found": [next(found) for _ in row["texts"]]} for row in rows]

    def write(target: Path, rows: Iterable[Row]) -> None:
        write_lines(target, _counted(((row["tokens"], row[KIND][scorer.label]["found"]) for row in rows), counts))

    lines = LineFormat(lambda _: _rows(path, form), write, lambda row: row["texts"])
    progress = progress_bar(f"scoring {path.name}", total)
    annotate(target, KIND, scorer.label, measure, lines=lines, block=block, progress=progress)
    return counts


def _rows(path: Path, form: Form) -> Iterator[Row]:
    """The texts of each row, with their client tokens."""
    for number, row in enumerate(form.read(path), 1):
        texts = form.texts(row)
        one = form.text_column is not None
        yield {"texts": texts, "tokens": [f"{number}" if one else f"{number}.{i}" for i in range(1, len(texts) + 1)]}


def _counted(rows: Iterable[tuple[list[str], list[Answer]]], counts: Counter[str]) -> Iterator[Answer]:
    """The answers with their client tokens. An error has none."""
    for tokens, answers in rows:
        for token, each in zip(tokens, answers, strict=True):
            counts[error_type(each) if "error" in each else "scored"] += 1
            yield each if "error" in each else each | {"clientToken": token}


def answers_to(texts: Sequence[str], scorer: AttributeScorer) -> list[Answer]:
    """The answer with all of the scorer's attributes to each text, or the error."""
    attributes: dict[str, dict] = {name: {} for name in scorer.offered}
    requests = [{"comment": {"text": text}, "requestedAttributes": attributes} for text in texts]
    questions = [_tried(read, request, scorer.offered) for request in requests]
    asked = [question.text for question in questions if isinstance(question, Question)]
    scores = iter(scorer(asked) if asked else [])
    return [
        _tried(answer, question, [next(scores)]) if isinstance(question, Question) else question
        for question in questions
    ]


def _tried(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns, or the error of the request that it refuses."""
    try:
        return function(*arguments)
    except Refused as error:
        return error.payload


def table(counts: Mapping[str, Counter[str]]) -> str:
    """The counts of each file in columns."""
    columns = ("texts", "scored", *REASONS)
    lines = [
        ("answers", *columns),
        *((name, *(str(found[each]) for each in columns)) for name, found in counts.items()),
    ]
    return text_table(lines, ">")
