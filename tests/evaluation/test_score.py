"""Scores in place: once each, beside the texts they belong to, in every kind of file, whatever was killed between."""

import csv
import json
import stat

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runs import locked_by_another

from nlf.cli.main import main
from nlf.config import ScoreOptions
from nlf.data.generations import read, text_digest
from nlf.errors import UserError
from nlf.evaluation.score import score_command, score_file, score_rows, table
from nlf.evaluation.score_files import form_of
from nlf.rewards import Judgement, Reward

TEXTS = ["one", "three", "a text, with commas", 'and "quotes"\nand lines', "", "ünïcode ☃", " 12", "last"]


class Length:
    """A scorer object that remembers every text it was asked about; None for an empty one."""

    name, version = "length", 1

    def __init__(self, fail_after=None):
        self.seen, self.calls, self.fail_after = [], [], fail_after

    def __call__(self, prompts, completions, completion_ids, **columns):
        if self.fail_after is not None and len(self.calls) >= self.fail_after:
            raise KeyboardInterrupt
        self.calls.append({"prompts": prompts, "ids": completion_ids, **columns})
        texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
        self.seen += texts
        return [float(len(text)) or None for text in texts]

    def attributes(self, texts):
        return {"toxicity": np.array([1 / (1 + len(text)) for text in texts]), "hate/threat": [None for _ in texts]}


def generation(i, completions, prompt="a prompt", **columns):
    return {
        **{"prompt": prompt, "prompt_id": str(i), "occurrence": 0, "prompt_ids": [1, 2], "feedback": None},
        **{"completions": completions, "completion_ids": [[3] * len(c) for c in completions]},
        **{"ended": [True] * len(completions), "columns": columns, "settings": {"seed": 0}},
    }


def write_rows(path, rows):
    """Rows as a file of the kind its name says."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


def rows_of(path, column="text"):
    return list(form_of(path, column).read(path))


def generations_file(path, count=10):
    return write_rows(path, [generation(i, [f"{'x' * i} {j}" for j in range(3)], topic=f"t{i}") for i in range(count)])


# ---- generations --------------------------------------------------------------------------------------------------


def test_generations_are_scored_with_everything_a_reward_may_ask_for(tmp_path):
    rows = [
        generation(0, ["a", ""], topic="x"),
        generation(1, ["bcd", "ef"], prompt=[{"role": "user", "content": "hi"}], level=3),
    ]
    path, scorer = write_rows(tmp_path / "generations.jsonl", rows), Length()
    (tally,) = score_file(path, [Reward(scorer)], progress=lambda n: None)
    found = [row["scores"]["length@1"] for row in read(path)]
    assert found[0] == {
        "of": text_digest(["a", ""]),
        "reward": [1.0, None],
        "attributes": {"toxicity": [0.5, 1.0], "hate/threat": [None, None]},
    }
    assert found[1]["reward"] == [3.0, 2.0] and found[1]["attributes"]["toxicity"] == [0.25, 1 / 3]
    chat = [{"role": "user", "content": "hi"}]
    assert scorer.calls == [
        {
            "prompts": ["a prompt", "a prompt", chat, chat],
            "ids": [[3], [], [3, 3, 3], [3, 3]],
            "topic": ["x", "x", None, None],
            "level": [None, None, 3, 3],
        }
    ]
    assert (tally.texts, tally.now, tally.unscored, tally.mean) == (4, 4, 1, 2.0)
    assert [{**row, "scores": None} for row in read(path)] == [{**row, "scores": None} for row in rows]


def test_a_second_reward_is_scored_alone_and_nothing_twice(tmp_path):
    path, first = generations_file(tmp_path / "generations.jsonl"), Length()
    score_file(path, [Reward(first)], progress=lambda n: None)

    def other(completions, **columns):
        other.seen += completions
        return [0.5] * len(completions)

    other.seen = []
    tallies = score_file(path, [Reward(first), Reward(other)], weights=[1, 4], progress=lambda n: None)
    assert len(first.seen) == len(other.seen) == 30
    assert [(t.scorer, t.now) for t in tallies] == [("length@1", 0), ("other", 30), ("weighted sum", 0)]
    assert tallies[2].mean == pytest.approx(tallies[0].mean + 2)
    before = path.stat().st_mtime_ns
    score_file(path, [Reward(first), Reward(other)], progress=lambda n: None)
    assert path.stat().st_mtime_ns == before and len(first.seen) == len(other.seen) == 30
    first.version = 2
    score_file(path, [Reward(first)], progress=lambda n: None)
    assert len(first.seen) == 60 and set(next(read(path))["scores"]) == {"length@1", "other", "length@2"}


def test_new_text_never_keeps_an_old_score(tmp_path):
    """The trap: the published evaluation paired scores with texts by their place."""
    path, scorer = generations_file(tmp_path / "generations.jsonl", 4), Length()
    score_file(path, [Reward(scorer)], progress=lambda n: None)
    rows = list(read(path))
    rows[2]["completions"][1] = "something else"
    write_rows(path, [rows[3], *rows[:3]])  # and another order
    score_file(path, [Reward(scorer)], progress=lambda n: None)
    assert scorer.seen[12:] == rows[2]["completions"]
    for row in read(path):
        assert row["scores"]["length@1"]["reward"] == [float(len(text)) for text in row["completions"]]


@pytest.mark.parametrize("name", ["generations.jsonl", "texts.jsonl", "texts.csv", "texts.parquet"])
@pytest.mark.parametrize("kills", [[0], [1, 2], [3, 1, 0, 2]])
def test_killed_and_run_again_every_text_is_scored_once(tmp_path, name, kills):
    unbroken, path = tmp_path / "unbroken" / name, tmp_path / name
    unbroken.parent.mkdir()
    for each in (unbroken, path):
        if name.startswith("g"):
            generations_file(each, 17)
        else:
            write_rows(each, [{"text": f"text {'x' * i}", "id": i} for i in range(17)])
    whole = Length()
    wanted = score_file(unbroken, [Reward(whole)], block=2, progress=lambda n: None)
    seen = []
    for blocks in kills:
        scorer = Length(fail_after=blocks)
        with pytest.raises(KeyboardInterrupt):
            score_file(path, [Reward(scorer)], block=2, progress=lambda n: None)
        seen += scorer.seen
    last = Length()
    (tally,) = score_file(path, [Reward(last)], block=2, progress=lambda n: None)
    assert sorted(seen + last.seen) == sorted(whole.seen)
    assert path.read_bytes() == unbroken.read_bytes()
    assert tally.now == len(last.seen) and tally.texts == wanted[0].texts and tally.mean == wanted[0].mean
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == [name]  # no journal is left


# ---- any texts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_any_file_with_a_text_column(tmp_path, kind):
    rows = [{"id": str(i), "comment": text, "lang": "en"} for i, text in enumerate(TEXTS)]
    path, scorer = write_rows(tmp_path / f"texts.{kind}", rows), Length()
    (tally,) = score_file(path, [Reward(scorer)], text_column="comment", block=3, progress=lambda n: None)
    found = rows_of(path, "comment")
    assert [{**row, "scores": None} for row in found] == [{**row, "scores": None} for row in rows]
    for row, text in zip(found, TEXTS, strict=True):
        assert row["scores"] == {
            "length@1": {
                "of": text_digest([text]),
                "reward": float(len(text)) or None,
                "attributes": {"toxicity": 1 / (1 + len(text)), "hate/threat": None},
            }
        }
    assert scorer.calls[0] == {
        "prompts": ["", "", ""], "ids": [[], [], []], "id": ["0", "1", "2"], "lang": ["en"] * 3,
    }  # fmt: skip
    assert (tally.texts, tally.now, tally.unscored) == (8, 8, 1)
    score_file(path, [Reward(scorer)], text_column="comment", progress=lambda n: None)
    assert scorer.seen == TEXTS


class Writes(Length):
    """Says something of some texts."""

    def judge(self, prompts, completions, completion_ids, **columns):
        return [Judgement(float(len(text)), feedback=f"{len(text)}!" if text else None) for text in completions]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_what_a_judge_wrote_stands_beside_its_score(tmp_path, kind):
    path = write_rows(tmp_path / f"t.{kind}", [{"text": "abc"}, {"text": ""}])
    for _ in range(2):
        score_file(path, [Reward(Writes())], progress=lambda n: None)
        first, second = (row["scores"]["length@1"] for row in rows_of(path))
        assert (first["reward"], first["feedback"], first["attributes"]) == (3.0, "3!", {})
        assert second["reward"] == 0.0 and "feedback" not in second
    path = write_rows(tmp_path / "generations.jsonl", [generation(0, ["a", ""]), generation(1, ["", ""])])
    score_file(path, [Reward(Writes())], progress=lambda n: None)
    first, second = (row["scores"]["length@1"] for row in read(path))
    assert first["feedback"] == ["1!", None] and "feedback" not in second


def test_a_tsv_file_stays_one(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text('text\tnote\nabc\t"a\tb"\n')
    score_file(path, [Reward(Length())], progress=lambda n: None)
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert (rows[0]["text"], rows[0]["note"], rows[0]["scores/length@1/reward"]) == ("abc", "a\tb", "3.0")


def test_nan_in_generations_becomes_null(tmp_path):
    path = write_rows(tmp_path / "generations.jsonl", [{**generation(0, ["a"]), "columns": {"x": float("nan")}}])
    assert "NaN" in path.read_text()
    score_file(path, [Reward(Length())], progress=lambda n: None)
    assert next(iter(read(path)))["columns"] == {"x": None}


def test_columns_of_flat_files(tmp_path):
    path = write_rows(tmp_path / "t.csv", [{"text": "abc", "n": "007"}, {"text": "", "n": "1.50"}])
    score_file(path, [Reward(Length())], progress=lambda n: None)
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    of = text_digest(["abc"]), text_digest([""])
    assert rows == [
        {
            **{"text": "abc", "n": "007", "scores/length@1/of": of[0], "scores/length@1/reward": "3.0"},
            **{"scores/length@1/toxicity": "0.25", "scores/length@1/hate/threat": ""},
        },
        {
            **{"text": "", "n": "1.50", "scores/length@1/of": of[1], "scores/length@1/reward": ""},
            **{"scores/length@1/toxicity": "1.0", "scores/length@1/hate/threat": ""},
        },
    ]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_names_with_slashes_stay_apart_in_columns(tmp_path, kind):
    path, scorers = write_rows(tmp_path / f"t.{kind}", [{"text": "a"}, {"text": "bb"}]), [Length(), Length(), Length()]
    for scorer, (scorer.name, scorer.version) in zip(
        scorers, [("a", None), ("a/b", None), ("hf:o/m#-X", "0f")], strict=True
    ):
        score_file(path, [Reward(scorer)], progress=lambda n: None)
    assert all(scorer.seen == ["a", "bb"] for scorer in scorers)
    (found, _), name = rows_of(path), "hf:o/m#-X@0f"
    assert list(found["scores"]) == ["a", "a/b", name] and found["scores"]["a"] == found["scores"][name]


def test_parquet_keeps_its_types_and_order(tmp_path):
    path = tmp_path / "t.parquet"
    columns = {"n": pa.array([1, 2], pa.int8()), "text": pa.array(["a", "bb"]), "xs": pa.array([[1.5], None])}
    pq.write_table(pa.table(columns).replace_schema_metadata({"made by": "a test"}), path)
    for version in (1, 2, 2):
        scorer = Length()
        scorer.version = version
        score_file(path, [Reward(scorer)], progress=lambda n: None)
    found = pq.read_table(path)
    assert found.select(list(columns)).equals(pa.table(columns))
    assert found.column_names[3:] == [
        f"scores/length@{v}/{name}" for v in (1, 2) for name in ("of", "reward", "toxicity", "hate/threat")
    ]
    assert found.schema.metadata[b"made by"] == b"a test"
    assert found["scores/length@2/reward"].to_pylist() == [1.0, 2.0]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00")), min_size=1, max_size=6
    ),
    kind=st.sampled_from(["jsonl", "csv", "parquet"]),
)
def test_any_text_survives_scoring_unchanged(tmp_path, texts, kind):
    path = write_rows(tmp_path / f"t.{kind}", [{"text": text, "copy": text} for text in texts])
    for scorer in (Length(), Length()):
        score_file(path, [Reward(scorer)], block=2, progress=lambda n: None)
        assert [(row["text"], row["copy"]) for row in rows_of(path)] == [(text, text) for text in texts]
    assert scorer.seen == []


def test_a_link_stays_a_link(tmp_path):
    path = write_rows(tmp_path / "real.jsonl", [{"text": "a"}])
    (tmp_path / "link.jsonl").symlink_to(path)
    score_file(tmp_path / "link.jsonl", [Reward(Length())], progress=lambda n: None)
    assert (tmp_path / "link.jsonl").is_symlink() and "scores" in path.read_text()


# ---- the command --------------------------------------------------------------------------------------------------


def command(path, *rewards, **options):
    return score_command(ScoreOptions(path=str(path), reward_funcs=list(rewards), batch_size=4, **options))


def test_the_command_says_what_is_there(tmp_path):
    (tmp_path / "evaluation").mkdir()
    path = generations_file(tmp_path / "evaluation" / "generations-a.jsonl", 2)
    generations_file(tmp_path / "evaluation" / "generations-b.jsonl", 1)
    said = command(tmp_path, "local@1")
    first, second = said.split("\n\n")
    assert first.splitlines()[0] == str(path)
    assert first.splitlines()[1].split() == "scorer texts scored now already had unscored mean".split()
    none = ["0", "(0.0", "%)"]
    assert first.splitlines()[2].split()[:7] == ["local@1", "6", "6", "0", *none]
    assert second.splitlines()[2].split()[:7] == ["local@1", "3", "3", "0", *none]
    assert command(tmp_path, "local@1").splitlines()[2].split()[:7] == ["local@1", "6", "0", "6", *none]
    scores = next(read(path))["scores"]["local@1"]
    assert scores["reward"] == pytest.approx([1 - t for t in scores["attributes"]["toxicity"]])


def test_the_table_of_two(tmp_path):
    path = write_rows(tmp_path / "t.jsonl", [{"text": ""}, {"text": "abcd"}])
    tallies = score_file(path, [Reward(Length()), Reward(lambda completions, **k: [0.25, None], "other")])
    assert [line.split() for line in table(tallies).splitlines()[1:]] == [
        ["length@1", "2", "2", "0", "1", "(50.0", "%)", "4"],
        ["other", "2", "2", "0", "1", "(50.0", "%)", "0.25"],
        ["weighted", "sum", "2", "0", "(0.0", "%)", "2.125"],  # 0.25 and 4: what one could not score counts as nothing
    ]


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
def test_completions_that_are_messages_are_scored_as_in_training(tmp_path, name):
    """TRL's conversational prompt-completion rows; the text is that of the last message."""
    talk = [{"role": "user", "content": "hello"}]
    said = [[{"role": "assistant", "content": text}] for text in ("one", "three")]
    rows = [{"prompt": talk, "completion": completion} for completion in said]
    write_rows(tmp_path / name, rows)
    seen = []

    def length(prompts, completions, **columns):
        seen.extend([completions, prompts])
        return [float(len(completion[-1]["content"])) for completion in completions]

    score_file(tmp_path / name, [Reward(length)], text_column="completion")
    assert seen == [said, [[], []]]
    table = tmp_path / name
    found = [json.loads(line) for line in table.read_text().splitlines()] if name == "t.jsonl" else None
    if found:
        assert [row["scores"]["length"]["reward"] for row in found] == [3.0, 5.0]
    else:
        assert pq.read_table(table)["scores/length/reward"].to_pylist() == [3.0, 5.0]


def test_progress_counts_every_text_of_every_reward(tmp_path):
    path, seen = generations_file(tmp_path / "generations.jsonl", 5), []
    for _ in range(2):
        score_file(
            path, [Reward(Length()), Reward(lambda completions, **k: [1] * len(completions))], progress=seen.append
        )
        assert sum(seen) == 30
        seen.clear()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.jsonl", '{"text": "a"}\n{"text": \n', r"t\.jsonl:2: broken JSON"),
        ("t.jsonl", '{"text": "a"}\n[1]\n', r"t\.jsonl:2: expected an object, found list"),
        ("t.jsonl", '{"txt": "a", "id": 1}\n', "row 1: no column 'text'; there are 'txt', 'id'; .*--text_column"),
        ("t.jsonl", '{"text": "a"}\n{"text": null}\n', "row 2: column 'text' holds null, expected text"),
        ("t.jsonl", '{"text": [{"role": "user"}]}\n', "row 1: column 'text' holds .*, expected text or messages"),
        ("t.jsonl", '{"text": "a", "scores": [1]}\n', "row 1: column 'scores' is taken"),
        ("t.jsonl", '{"text": "a", "x": NaN}\n', "row 1: a value that is not JSON"),
        ("t.jsonl", '{"text": "\\ud800"}\n', "row 1: a value that is not JSON"),
        ("t.jsonl", "", "no texts in it"),
        ("t.csv", "text,n\n", "no texts in it"),
        ("t.csv", "", "no texts in it"),
        ("t.csv", "a,b\n1,2\n", r"t\.csv:2: no column 'text'; there are 'a', 'b'"),
        ("t.csv", "text,n\na,1,2\n", r"t\.csv:2: 3 fields where the header has 2"),
        ("t.csv", "text,n,n\na,1,2\n", r"t\.csv:1: two columns 'n'"),
        ("t.csv", "text,scores\na,1\n", "column 'scores' is taken"),
        ("t.csv", "text,scores/x@1/of,scores/x@1/reward\na,00,high\n", "column 'scores/x@1/reward' holds 'high'"),
        ("t.parquet", "no", "not a readable Parquet file"),
        ("t.txt", "a", r"unknown kind of file; expected \.jsonl, \.csv, \.tsv, \.parquet"),
        ("g.jsonl", '{"completions": ["a"], "prompt": "b"}\n', r"g\.jsonl:1: no field 'prompt_id'"),
    ],
)
def test_what_cannot_be_scored_is_one_line_and_nothing_is_written(tmp_path, name, content, said):
    path, scorer = tmp_path / name, Length()
    path.write_text(content)
    with pytest.raises(UserError, match=said) as refused:
        score_file(path, [Reward(scorer)])
    assert "\n" not in str(refused.value) and scorer.calls == []
    assert path.read_text() == content and len(list(tmp_path.iterdir())) == 1


def test_other_mistakes(tmp_path):
    with pytest.raises(UserError, match=r"no generations\*\.jsonl in it"):
        command(tmp_path, "local")
    with pytest.raises(UserError, match="no such file or folder"):
        command(tmp_path / "none.jsonl", "local")
    path = write_rows(tmp_path / "t.jsonl", [{"text": "a"}])
    with pytest.raises(UserError, match="length@1, length@1: two rewards have the same name"):
        score_file(path, [Reward(Length()), Reward(Length())])
    with pytest.raises(UserError, match="unknown reward"):
        command(path, "locl")
    with pytest.raises(UserError, match="attribute 'x', returned 0 values for 1 completions"):
        score_rows([generation(0, ["a"])], Reward(type("S", (Length,), {"attributes": lambda self, t: {"x": []}})()))


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    path = write_rows(tmp_path / "t.jsonl", [{"text": "a"}])
    journal = tmp_path / f".t.jsonl.scores.{'0' * 16}.journal"
    journal.mkdir()  # opening it fails, for root too
    monkeypatch.setattr("nlf.data.generations.digest", lambda value: "0" * 16)
    with pytest.raises(UserError, match="cannot write .*journal"):
        score_file(path, [Reward(Length())])
    assert "scores" not in path.read_text()


def test_rewards_may_be_one_word_with_commas(tmp_path, capsys):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "a calm day"}\n')
    assert main(["score", str(path), "--reward", "local@1,tiny:vowels"]) == 0
    assert set(json.loads(path.read_text())["scores"]) == {"local@1", "vowels"}


@pytest.mark.parametrize("name", ["t.jsonl", "t.csv", "t.parquet"])
def test_a_private_file_stays_private_and_so_does_its_journal(tmp_path, name):
    path = write_rows(tmp_path / name, [{"text": "secret"}])
    path.chmod(0o600)
    with pytest.raises(KeyboardInterrupt):
        score_file(path, [Reward(Length(fail_after=0))])
    journal = next(tmp_path.glob(".*.journal"))
    score_file(path, [Reward(Length())])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and not journal.exists()


def test_a_journal_has_the_permissions_of_its_file(tmp_path):
    path = write_rows(tmp_path / "t.jsonl", [{"text": "a"}, {"text": "b"}])
    path.chmod(0o600)
    with pytest.raises(KeyboardInterrupt):
        score_file(path, [Reward(Length(fail_after=1))], block=1)
    assert stat.S_IMODE(next(tmp_path.glob(".*.journal")).stat().st_mode) == 0o600


def test_a_folder_that_cannot_be_written_is_found_before_a_text_is_scored(tmp_path, monkeypatch):
    path, scorer = write_rows(tmp_path / "t.jsonl", [{"text": "a"}]), Length()
    monkeypatch.setattr("nlf.data.files.os.access", lambda path, mode: False)
    with pytest.raises(UserError, match="cannot write .*t.jsonl: Permission denied; make it writable"):
        score_file(path, [Reward(scorer)])
    assert scorer.seen == []


def test_a_second_command_on_a_file_is_refused_and_other_files_beside_it_are_not(tmp_path, capsys):
    first, second = (write_rows(tmp_path / name, [{"text": "a"}]) for name in ("a.jsonl", "a.jsonl.csv"))
    with locked_by_another(first):
        assert main(["score", str(first)]) == 2
        assert f"{first} is being written by" in capsys.readouterr().err
        assert main(["score", str(second)]) == 0
    assert "scores" not in first.read_text() and "scores" in second.read_text()


def test_a_link_to_a_file_is_scored_in_the_file(tmp_path):
    path = write_rows(tmp_path / "t.jsonl", [{"text": "a"}])
    (tmp_path / "link.jsonl").symlink_to(path)
    score_file(tmp_path / "link.jsonl", [Reward(Length())])
    assert (tmp_path / "link.jsonl").is_symlink() and "scores" in path.read_text()


def test_an_export_does_not_overwrite_another_file(tmp_path, capsys):
    (tmp_path / "notes.jsonl").write_text("mine\n")
    command = ["score", "--export_cache", str(tmp_path / "notes.jsonl"), "--cache_dir", str(tmp_path / "cache")]
    assert main(command) == 2
    assert "notes.jsonl is there already and would be overwritten" in capsys.readouterr().err
    (tmp_path / "notes.jsonl").write_text('{"key": "k", "scorer": "s", "answer": 1}\n')
    assert main(command) == 0  # an earlier export
