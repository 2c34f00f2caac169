"""Logged feedback of every shape, as its own documentation writes it, is read as prompts, completions and rewards."""

import csv
import gzip
import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nlf.data.logged import understand
from nlf.errors import UserError

SKY = "The sky is"
USER = [{"role": "user", "content": "What color is the sky?"}]


def answer(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


@pytest.fixture
def logs(tmp_path):
    def write(*rows, name="logs.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write


def seen(source: str, columns=None) -> list[tuple]:
    """Prompt, completion and rewards of every row."""
    found = understand([source], columns)
    return [(row.prompt, row.completion, row.rewards) for each in found.files for row in each.rows]


RECORDS = {  # shape, the record of its documentation, the columns that are named, and the rows that it gives
    "trl preference": ("pairs", {"prompt": SKY, "chosen": " blue.", "rejected": " green."}, None,
                       [(SKY, " blue.", (1.0,)), (SKY, " green.", (0.0,))]),
    "trl implicit prompt": ("pairs", {"chosen": "The sky is blue.", "rejected": "The sky is green."}, None,
                            [(SKY, " blue.", (1.0,)), (SKY, " green.", (0.0,))]),
    "trl conversational preference": ("pairs", {"prompt": USER, "chosen": answer("It is blue."), "rejected": answer("It is green.")},
                                      None, [(USER, "It is blue.", (1.0,)), (USER, "It is green.", (0.0,))]),
    "trl conversational implicit prompt": ("pairs", {"chosen": USER + answer("It is blue."), "rejected": USER + answer("It is green.")},
                                           None, [(USER, "It is blue.", (1.0,)), (USER, "It is green.", (0.0,))]),
    "ultrafeedback binarized": ("pairs", {"prompt": USER[0]["content"], "chosen": USER + answer("Blue."), "rejected": USER + answer("No."),
                                          "score_chosen": 8.0, "score_rejected": 2.0}, None,
                                [(USER, "Blue.", (1.0,)), (USER, "No.", (0.0,))]),
    "hh": ("pairs", {"chosen": "\n\nHuman: Hi\n\nAssistant: I am well.", "rejected": "\n\nHuman: Hi\n\nAssistant: I hate you."}, None,
           [("\n\nHuman: Hi\n\nAssistant:", " I am well.", (1.0,)), ("\n\nHuman: Hi\n\nAssistant:", " I hate you.", (0.0,))]),
    "trl unpaired": ("labels", {"prompt": SKY, "completion": " blue.", "label": True}, None, [(SKY, " blue.", (1.0,))]),
    "kto in messages": ("labels", {"prompt": USER, "completion": answer("Green."), "label": False}, None, [(USER, "Green.", (0.0,))]),
    "scores": ("scores", {"prompt": SKY, "completion": " blue.", "score": 0.7}, None, [(SKY, " blue.", (0.7,))]),
    "lower is better": ("scores", {"prompt": SKY, "completion": " blue.", "wrong": 3}, ["reward=-wrong"], [(SKY, " blue.", (-3.0,))]),
    "helpsteer2": ("ratings", {"prompt": "Hi", "response": "Hello.", "helpfulness": 3, "correctness": 4, "coherence": 4,
                               "complexity": 1, "verbosity": 0}, ["user=prompt", "completion=response"],
                   [([{"role": "user", "content": "Hi"}], "Hello.", (3.0, 4.0, 4.0, 1.0, 0.0))]),
    "ultrafeedback": ("ratings", {"instruction": "Hi", "completions": [{"response": "Yo.", "annotations": {
        "helpfulness": {"Rating": "4"}, "honesty": {"Rating": "N/A"}}}]}, None, None),
    "two named numbers": ("ratings", {"prompt": SKY, "completion": " blue.", "a": 1, "b": 2}, ["reward=a", "reward=-b"],
                          [(SKY, " blue.", (1.0, -2.0))]),
    "no feedback": ("completions", {"prompt": SKY, "completion": " blue."}, None, [(SKY, " blue.", ())]),
    "realtoxicityprompts": ("scores", {"prompt": {"text": SKY, "toxicity": 0.1}, "continuation": {"text": " blue", "toxicity": 0.25}},
                            None, [(SKY, " blue", (-0.25,))]),
    "scored generations": ("scores", {"prompt": {"text": SKY}, "generations": [{"text": " blue", "toxicity": 0.25}]}, None,
                           [(SKY, " blue", (0.75,))]),
    "our generations": ("scores", {"prompt": SKY, "completions": [" blue", " red"], "completion_ids": [[1, 0], [2]],
                                   "ended": [True, False], "scores": {"local@2": {"reward": [0.9, 0.5]}}}, None,
                        [(SKY, " blue", (0.9,)), (SKY, " red", (0.5,))]),
    "messages": ("scores", {"messages": USER + answer("Blue."), "reward": 2}, None, [(USER, "Blue.", (2.0,))]),
}  # fmt: skip


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_as_its_documentation_writes_it(logs, name):
    shape, record, columns, expected = RECORDS[name]
    other = {"label": not record["label"]} if "label" in record else {}
    path = logs(record, {**record, **other})
    assert understand([path], columns).shape.name == shape
    if expected is not None:
        assert seen(path, columns)[: len(expected)] == expected


def test_ratings_that_are_not_applicable_are_no_numbers(logs):
    (row, _) = seen(logs(*[RECORDS["ultrafeedback"][1]] * 2))
    assert row[2][0] == 4.0 and math.isnan(row[2][1])


def test_a_sentence_may_have_a_score_or_none(logs):
    rows = [{"prompt": SKY, "completion": " blue.", "feedback": " Right,\nand short. ", "score": 1}]
    rows += [{"prompt": SKY, "completion": " red.", "feedback": None, "score": 0}, {"prompt": SKY, "completion": " x"}]
    found = understand([logs(*rows)], None)
    assert (found.shape.name, found.sentences, len(found)) == ("sentences", 1, 2)
    assert [row.sentence for each in found.files for row in each.rows] == ["Right, and short.", None]
    assert found.lines() == [f"1 of 3 rows are not used: no feedback (first: {found.files.sources[0]}:3)"]


def test_the_rollouts_of_a_run_are_read_with_their_rewards(tmp_path):
    """The trap: their column `feedback` is what they were sampled under, not what somebody said about them."""
    row = {
        "prompt": SKY,
        "prompt_ids": [1],
        "completion": " blue",
        "completion_ids": [2],
        "reward": 0.5,
        "ended": False,
    }
    table = pa.Table.from_pylist([row | {"feedback": "Lowest Toxicity", "judged": None, "rewards": {"local": 0.5}}])
    folder = tmp_path / "iteration-0000"
    folder.mkdir()
    pq.write_table(table, folder / "part-00000.parquet")
    (folder / "credit.parquet").write_bytes(b"of another kind")
    found = understand([str(folder)], None)
    assert found.shape.name == "scores"
    assert [(row.completion, row.rewards, row.sentence, row.ended) for row in found.examples] == [
        (" blue", (0.5,), None, False)
    ]


@pytest.mark.parametrize("kind", [".jsonl", ".jsonl.gz", ".json", ".csv", ".csv.gz", ".tsv", ".parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, kind):
    rows = [{"prompt": f"number {i}", "completion": f' "{i}",\tis', "reward": i / 4} for i in range(5)]
    path = tmp_path / f"logs{kind}"
    if kind == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with (gzip.open if kind.endswith(".gz") else open)(path, "wt", encoding="utf-8", newline="") as file:
            if "csv" in kind or "tsv" in kind:
                writer = csv.DictWriter(file, [*rows[0]], delimiter="\t" if "tsv" in kind else ",")
                writer.writeheader()
                writer.writerows(rows)
            else:
                file.write(json.dumps(rows) if kind == ".json" else "\n".join(map(json.dumps, rows)))
    assert seen(str(path)) == [(row["prompt"], row["completion"], (row["reward"],)) for row in rows]


def test_folders_and_several_files_are_read_in_order(tmp_path, logs):
    for name in ("b", "a"):
        logs({"prompt": name, "completion": " x", "reward": 1}, name=f"{name}.jsonl")
    (tmp_path / "README.md").write_text("no rows")
    assert [row[0] for row in seen(str(tmp_path))] == ["a", "b"]
    both = understand([str(tmp_path / "b.jsonl"), str(tmp_path / "a.jsonl")], None)
    assert [row.prompt for row in both.examples] == ["b", "a"]


def test_the_digest_follows_the_rows_and_not_the_file(logs):
    row = {"prompt": SKY, "completion": " blue.", "reward": 1}
    one, other = understand([logs(row)], None), understand([logs({**row, "id": 7}, name="x.json")], None)
    assert one.digest == other.digest != understand([logs({**row, "reward": 2})], None).digest


@pytest.mark.parametrize(
    ("given", "columns", "ended"),
    [
        ({}, None, True),
        ({"finish_reason": "stop"}, None, True),
        ({"finish_reason": "length"}, None, False),
        ({"ended": False}, None, False),
        ({"ended": "false"}, None, False),
        ({"done": 0}, ["ended=done"], False),
        ({}, ["ended=false"], False),
    ],
)
def test_whether_a_completion_was_cut(logs, given, columns, ended):
    found = understand([logs({"prompt": SKY, "completion": " blue.", "reward": 1, **given})], columns)
    assert found.examples[0].ended is ended


def test_prompts_and_completions_that_meet_inside_a_word_are_told(logs):
    rows = [{"prompt": "What color is the sky?", "completion": "Blue.", "reward": 1}, {**ROW, "reward": 0}]
    (line,) = understand([logs(rows[0])], None).lines()
    assert line.startswith(
        "warning: prompts and completions meet without a space, as in ' is the sky?Blue.'; begin completions with"
    )
    assert understand([logs(*rows)], None).lines() == []


def test_levels_are_whole_numbers_from_zero_without_a_gap(logs):
    rewards = [([0, 1, 2], 3), ([1, 2], None), ([0, 2], None), ([0, 0.5, 1], None), ([3, 3], None)]
    for numbers, levels in rewards:
        rows = [{"prompt": SKY, "completion": " x", "reward": n} for n in numbers]
        assert understand([logs(*rows)], None).levels(0) == levels


UNUSABLE = {
    "no prompt": {"prompt": "", "completion": " x", "reward": 1},
    "no completion": {"prompt": SKY, "completion": "  ", "reward": 1},
    "no reward": {"prompt": SKY, "completion": " x", "reward": None},
    "a reward that is not a number": {"prompt": SKY, "completion": " x", "reward": "good"},
    "a message without role and content as text": {"prompt": [{"role": "user"}], "completion": " x", "reward": 1},
    "the last message before the completion is the assistant's": {
        "prompt": answer("a"),
        "completion": " x",
        "reward": 1,
    },
    "half a character (a lone surrogate)": {"prompt": "\ud800 x", "completion": " x", "reward": 1},
    "completion is not one message of the assistant": {"prompt": SKY, "completion": USER * 2, "reward": 1},
}


@pytest.mark.parametrize("reason", UNUSABLE)
def test_what_cannot_be_used_is_counted_with_its_reason(logs, reason):
    good = {"prompt": SKY, "completion": " blue.", "reward": 1}
    found = understand([logs(good, UNUSABLE[reason], UNUSABLE[reason])], None)
    assert found.lines() == [f"2 of 3 rows are not used: {reason} (first: {found.files.sources[0]}:2)"]
    assert len(found) == 1


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        ({"chosen": "The sky is", "rejected": "The sky is"}, "chosen and rejected are the same"),
        ({"chosen": "The sky", "rejected": "A sea"}, "chosen and rejected have no prompt and no common beginning"),
        ({"prompt": SKY, "chosen": SKY, "rejected": f"{SKY} red"}, "chosen or rejected is empty"),
        ({"prompt": USER, "chosen": answer("a") + USER, "rejected": answer("b")}, "chosen is not one message of the assistant"),
    ],
)  # fmt: skip
def test_pairs_that_cannot_be_used(logs, pair, reason):
    good = {"prompt": USER if isinstance(pair["chosen"], list) else SKY, "chosen": " blue", "rejected": " red"}
    assert [*understand([logs(good, pair)], None).unused] == [reason]


ROW = {"prompt": SKY, "completion": " blue.", "reward": 1}


@pytest.mark.parametrize(
    ("rows", "columns", "words"),
    [
        ([], None, "no rows in it"),
        ([{"text": "a"}], None, "no field 'completion'; there are text; expected prompt and completion with reward"),
        ([{"completion": "a"}], None, "no field 'prompt'"),
        ([ROW], ["completion=answer"], "no field 'answer', which feedback_columns names as completion"),
        ([ROW], ["answer=completion"], "expected one of prompt, user, completion"),
        ([ROW], ["label"], "feedback_columns 'label': expected ROLE=COLUMN"),
        ([ROW], ["label=a", "label=b"], "label is given twice"),
        ([ROW, {**ROW, "prompt": USER}], None, ":2: feedback mixes prompts that are text with prompts that are messages"),
        ([{**ROW, "reward": None}], None, "nothing can be used: 1 of 1 rows are not used: no reward"),
        ([{"prompt": "a", "completion": "b", "label": True}], None, "all labels are true"),
        ([{"prompt": SKY, "completions": [" a"], "completion_ids": [[1]], "ended": [True], "scores": {"a": {}, "b": {}}}], None,
         "scores of a, b; choose one with feedback_columns reward=a"),
        ([[1]], None, "expected an object, found list"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(logs, rows, columns, words):
    with pytest.raises(UserError) as caught:
        understand([logs(*rows)], columns)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_broken_line_and_a_missing_file_are_named(logs, tmp_path):
    path = logs(ROW)
    with open(path, "a") as file:
        file.write("{broken\n")
    with pytest.raises(UserError, match=r"logs.jsonl:2: broken JSON"):
        understand([path], None)
    with pytest.raises(UserError, match="no such file"):
        understand([str(tmp_path / "none.csv")], None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="the folder has no files that end in"):
        understand([str(tmp_path / "empty")], None)


def test_files_of_two_kinds_are_refused(logs):
    one, two = logs(ROW), logs({"prompt": SKY, "chosen": "a", "rejected": "b"}, name="pairs.jsonl")
    with pytest.raises(
        UserError, match=r"logs.jsonl holds scores in reward and \S+pairs.jsonl holds pairs; train on one"
    ):
        understand([one, two], None)


def test_a_hub_id_with_configuration_and_split(monkeypatch):
    import datasets

    asked = []

    def load(*names, split, streaming):
        asked.append((*names, split))
        return [ROW]

    monkeypatch.setattr(datasets, "load_dataset", load)
    for source in ("nvidia/HelpSteer2", "nvidia/HelpSteer2:default:validation", "a/b::train[:10%]"):
        assert len(understand([source], None)) == 1
    assert sorted(set(asked), key=str) == [
        ("a/b", None, "train[:10%]"), ("nvidia/HelpSteer2", "default", "validation"), ("nvidia/HelpSteer2", None, "train"),
    ]  # fmt: skip
