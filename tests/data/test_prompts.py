"""Every kind of prompt file gives the same rows, and every mistake is one line with file, line and field."""

import gzip
import json
import string

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlf.data.prompts import all_conversations, as_prompts, load_prompts, prompt_id
from nlf.errors import UserError

TEXTS = ["the river", 'she said "no", then', "naïve — ünïcode\u2028line"]
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]


def jsonl(rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


@pytest.fixture
def write(tmp_path):
    def write(name: str, content) -> str:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


@pytest.fixture
def refused(write):
    """Write a file, load it, and return the one line of the error."""

    def refused(name: str, content, **options) -> str:
        with pytest.raises(UserError) as caught:
            load_prompts(write(name, content), **options)
        message = str(caught.value)
        assert "\n" not in message and name in message
        return message

    return refused


def parquet(rows) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


ROWS = [{"prompt": text, "topic": "t", "n": i} for i, text in enumerate(TEXTS)]
CSV = 'prompt,topic,n\nthe river,t,0\n"she said ""no"", then",t,1\n"naïve — ünïcode\u2028line",t,2\n'
KINDS = {
    ".jsonl": jsonl(ROWS),
    ".json": json.dumps(ROWS).encode(),
    ".csv": CSV.encode(),
    ".parquet": parquet(ROWS),
    ".txt": "\n".join(TEXTS).encode(),
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("suffix", KINDS)
def test_every_kind_of_file_gives_the_same_prompts(write, suffix, zipped):
    data = KINDS[suffix]
    rows = load_prompts(write(f"p{suffix}.gz" if zipped else f"p{suffix}", gzip.compress(data) if zipped else data))
    assert [row["prompt"] for row in rows] == TEXTS
    assert [row["prompt_id"] for row in rows] == [prompt_id(text) for text in TEXTS]
    if suffix != ".txt":
        assert [(row["topic"], int(row["n"])) for row in rows] == [("t", 0), ("t", 1), ("t", 2)]


def test_realtoxicityprompts(write):
    row = {"begin": 0, "prompt": {"text": "So I'm starting to", "toxicity": 0.1}, "continuation": {"text": " think"}}
    (found,) = load_prompts(write("rtp.jsonl", jsonl([row])))
    assert (
        found["prompt"] == "So I'm starting to" and found["begin"] == 0 and found["continuation"] == {"text": " think"}
    )


def test_another_column(write):
    path = write("p.jsonl", jsonl([{"question": "why", "prompt": "not this"}]))
    assert load_prompts(path, column="question")[0]["prompt"] == "why"
    assert load_prompts(write("p.txt", "why\r\n\r\nhow\r\n"), column="question")[1]["prompt"] == "how"


def test_messages_from_jsonl_and_parquet_but_csv_is_text(write):
    for path in (write("p.jsonl", jsonl([{"prompt": CHAT}])), write("p.parquet", parquet([{"prompt": CHAT}]))):
        assert load_prompts(path)[0]["prompt"] == CHAT
    text = json.dumps(CHAT)
    quoted = text.replace('"', '""')
    assert load_prompts(write("p.csv", f'prompt\n"{quoted}"\n'))[0]["prompt"] == text


def test_a_field_longer_than_pythons_limit_is_read(write):
    assert load_prompts(write("p.csv", f"prompt,context\na,{'y' * 140_000}\n"))[0]["context"] == "y" * 140_000


def test_tabs_part_the_fields_of_a_tsv_file(write):
    row = load_prompts(write("p.tsv", 'prompt\ttopic\nwell, then\t"a\tb"\n'))[0]
    assert (row["prompt"], row["topic"]) == ("well, then", "a\tb")


def test_nan_in_another_column_is_none(write):
    """pandas writes NaN into JSON, and its Parquet holds NaN."""
    rows = load_prompts(write("p.jsonl", '{"prompt": "a", "x": NaN, "y": {"z": [1, -Infinity]}, "w": 1e999}'))
    assert {name: rows[0][name] for name in "xyw"} == {"x": None, "y": {"z": [1, None]}, "w": None}
    assert load_prompts(write("p.parquet", parquet([{"prompt": "a", "x": float("nan")}])))[0]["x"] is None
    assert as_prompts([{"prompt": "a", "x": np.float32("nan"), "y": np.float32(0.5)}])[0] | {"prompt_id": ""} == {
        "prompt": "a", "x": None, "y": 0.5, "prompt_id": "",
    }  # fmt: skip


def test_limit_reads_no_further(write):
    path = write("p.jsonl", '{"prompt": "a"}\n{"prompt": "b"}\n{broken')
    assert [row["prompt"] for row in load_prompts(path, limit=2)] == ["a", "b"]


def test_a_byte_order_mark_and_blank_lines_are_no_prompts(write):
    assert len(load_prompts(write("p.jsonl", b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n{"prompt": "b"}\r\n'))) == 2


def test_the_id_depends_on_the_prompt_alone(write):
    first = load_prompts(write("p.jsonl", jsonl([{"prompt": "a", "prompt_id": 7}, {"prompt": "b"}, {"prompt": "a"}])))
    assert first[0]["prompt_id"] == first[2]["prompt_id"] != first[1]["prompt_id"]
    assert prompt_id(CHAT) == prompt_id([dict(reversed(message.items())) for message in CHAT]) != prompt_id("a")


@pytest.mark.parametrize(("split", "count"), [("train", 1000), ("test", 200)])
def test_the_embedded_prompts(split, count):
    rows = load_prompts("embedded", split=split)
    assert len({row["prompt_id"] for row in rows}) == count and {"topic", "register"} <= rows[0].keys()


def test_embedded_has_two_splits():
    with pytest.raises(UserError, match="no split 'dev'; there are .*test, train"):
        load_prompts("embedded", split="dev")


WRONG = {
    "broken line": (
        "p.jsonl",
        '{"prompt": "a"}\n{"prompt": \n',
        "p.jsonl:2: broken JSON (Expecting value, column 12)",
    ),
    "a number no JSON reader takes": ("p.jsonl", '{"prompt": ' + "9" * 5000 + "}", "p.jsonl:1: JSON that cannot be"),
    "brackets without end": ("p.jsonl", "[" * 200_000, "p.jsonl:1: JSON that cannot be read"),
    "brackets within brackets": ("p.jsonl", f'{{"prompt": "a", "x": {"[" * 900}{"]" * 900}}}', "nested too deeply"),
    "no such field": ("p.jsonl", '{"text": "a", "id": 3}', ":1: no field 'prompt'; there are 'text', 'id'; name"),
    "no field at all": ("p.jsonl", "{}", ":1: no field 'prompt'; there are none"),
    "no object": ("p.jsonl", '"a"', ":1: expected an object with a field 'prompt', found str"),
    "a number": ("p.jsonl", '{"prompt": 3}', ":1: field 'prompt' is int; expected text, a list of messages"),
    "null": ("p.jsonl", '{"prompt": null}', ":1: field 'prompt' is NoneType"),
    "an object without text": ("p.jsonl", '{"prompt": {"t": 1}}', ":1: field 'prompt' is dict; expected text"),
    "blank prompt": ("p.jsonl", '{"prompt": "a"}\n\n{"prompt": " \\n"}', ":3: field 'prompt' is empty"),
    "half a character": ("p.jsonl", '{"prompt": "\\ud800"}', ":1: field 'prompt' holds half a character ('\\ud800')"),
    "not UTF-8": ("p.jsonl", b'{"prompt": "a"}\n{"prompt": "\xff"}', "p.jsonl:2: not UTF-8 (byte 28); convert"),
    "empty file": ("p.jsonl", "", "no prompts in it; expected at least one"),
    "blank text": ("p.txt", " \n\n", "no prompts in it"),
    "header alone": ("p.csv", "prompt,topic\n", "no prompts in it"),
    "no column": ("p.csv", "text,topic\na,b\n", "p.csv:2: no field 'prompt'; there are 'text', 'topic'"),
    "comma without quotes": (
        "p.csv",
        "prompt,n\na,1\nwell, then,2\n",
        "p.csv:3: 3 fields where the header has 2; a comma",
    ),
    "field missing": ("p.csv", "prompt,n\na\n", "p.csv:2: 1 fields where the header has 2"),
    "quote never closed": ("p.csv", 'prompt\n"a\n', "broken CSV (unexpected end of data)"),
    "JSON Lines named .json": ("p.json", '{"prompt": "a"}\n{"prompt": "b"}\n', "broken JSON (Extra data, line 2)"),
    "one object": ("p.json", '{"prompt": "a"}', "expected a list of objects, found dict; is it JSON Lines?"),
    "bad item": ("p.json", '[{"prompt": "a"}, 3]', "item 2: expected an object with a field 'prompt', found int"),
    "no Parquet": ("p.parquet", "text", "p.parquet: not a readable Parquet file"),
    "half a Parquet": ("p.parquet", parquet(ROWS)[:-9], "p.parquet: not a readable Parquet file"),
    "Parquet of numbers": ("p.parquet", parquet([{"prompt": 3}]), "row 1: field 'prompt' is int"),
    "no gzip": ("p.jsonl.gz", '{"prompt": "a"}', "cannot be read: Not a gzipped file"),
    "half a gzip": ("p.txt.gz", gzip.compress(b"a b c" * 99)[:-12], "cannot be read: "),
    "a spoiled gzip": ("p.txt.gz", gzip.compress(b"a b c" * 99)[:12] + b"\xff" * 20, "cannot be read: "),
    "tab without quotes": ("p.tsv", "prompt\tn\na\t1\t2\n", "p.tsv:2: 3 fields where the header has 2; a tab"),
    "unknown kind": ("p.xlsx", "a", "unknown kind of file; expected .jsonl, .json, .csv, .tsv, .parquet, .txt (also"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_in_one_line(refused, name):
    file, content, expected = WRONG[name]
    assert expected in refused(file, content)


MESSAGES = {
    "none": ([], "has no messages"),
    "texts": (["why"], 'message 1: expected {"role": "user", "content": "…"} with both as text, found "why"'),
    "no role": ([CHAT[0], {"content": "a"}], "message 2: expected"),
    "content of parts": ([{"role": "user", "content": [{"type": "image"}]}], "message 1: expected"),
    "nothing asked": ([{"role": "user", "content": " "}], "the last message is empty"),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_what_is_wrong_with_messages(refused, name):
    messages, expected = MESSAGES[name]
    message = refused("p.jsonl", jsonl([{"prompt": CHAT}, {"prompt": messages}]))
    assert expected in message and "p.jsonl:2: field 'prompt'" in message


def test_a_missing_file_is_never_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    names = ["p.jsonl", "data/p.csv.gz", "data/prompts", "./prompts", "/no/p", "~/no-such-prompts", "a/b/c", "data/"]
    for name in names[:-1]:
        with pytest.raises(UserError, match="no such file$"):
            load_prompts(name)
    with pytest.raises(UserError, match="data/: a folder; expected a file in it"):
        load_prompts(names[-1])


def test_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="p.txt: cannot be read: .*Not a directory"):
        load_prompts(tmp_path / "file" / "p.txt")


def test_a_hub_id(monkeypatch):
    import datasets

    def load(name, config=None, split=None, streaming=False):
        assert (name, split) == ("someone/prompts-v1.0", "dev")
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    rows = load_prompts("someone/prompts-v1.0", split="dev", limit=2)
    assert [row["prompt"] for row in rows] == TEXTS[:2] and rows[1]["n"] == 1


def test_a_hub_id_with_a_configuration_is_streamed_no_further_than_asked(monkeypatch):
    import datasets

    read = []

    def rows():
        for row in ROWS:
            read.append(row)
            yield row

    def load(name, config=None, split=None, streaming=False):
        assert (name, config, split, streaming) == ("someone/prompts", "helpful", "train", True)
        return datasets.IterableDataset.from_generator(rows)

    monkeypatch.setattr(datasets, "load_dataset", load)
    found = load_prompts("someone/prompts", config="helpful", streaming=True, limit=1)
    assert [row["prompt"] for row in found] == TEXTS[:1] and len(read) == 1


def test_a_file_has_no_configurations(write):
    with pytest.raises(UserError, match="^dataset_config helpful: .*p.jsonl is a file, which has no configurations"):
        load_prompts(write("p.jsonl", jsonl(ROWS)), config="helpful")


@pytest.mark.parametrize("error", [ConnectionError("cannot reach\nthe hub"), ValueError("Unknown split"), OSError()])
def test_a_hub_that_cannot_be_reached(monkeypatch, error):
    import datasets

    def load(name, config=None, split=None, streaming=False):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(UserError, match="^someone/prompts: no such file, and no data set .*; give the path") as caught:
        load_prompts("someone/prompts")
    assert "\n" not in str(caught.value) and caught.value.__cause__ is error


def test_rows_and_data_sets_are_taken_as_they_are(write):
    import datasets

    loaded = load_prompts(write("p.jsonl", jsonl(ROWS)))
    assert as_prompts(loaded) == as_prompts(ROWS) == as_prompts(datasets.Dataset.from_list(ROWS)) == loaded
    with pytest.raises(UserError, match="no rows"):
        as_prompts([])


def test_a_data_set_with_ids_of_its_own_is_checked_all_the_same():
    """Chat data sets often have a `prompt_id` of their own."""
    assert as_prompts([{"prompt": "a", "prompt_id": "7"}])[0]["prompt_id"] == prompt_id("a")
    with pytest.raises(UserError, match="row 1: field 'prompt' is empty"):
        as_prompts([{"prompt": "a"}, {"prompt": "", "prompt_id": "8"}])


def test_text_or_messages_but_not_both():
    text, chat = as_prompts([{"prompt": "a"}]), as_prompts([{"prompt": CHAT}])
    assert not all_conversations(text) and all_conversations(chat)
    with pytest.raises(UserError, match="some prompts are text and some are messages"):
        all_conversations(text + chat)


@given(st.binary(max_size=80), st.sampled_from([*KINDS, ".jsonl.gz"]))
def test_any_bytes_give_rows_or_one_line(tmp_path_factory, data, suffix):
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    path.write_bytes(data)
    _rows_or_one_line(path)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(string.printable + "é\ud800", max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["prompt", "text", "role", "content"]), inner, max_size=3)
    ),
)


@given(VALUES)
def test_any_json_gives_rows_or_one_line(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "any_value.jsonl"
    path.write_text(json.dumps(value))
    _rows_or_one_line(path)


def _rows_or_one_line(path):
    try:
        rows = load_prompts(path)
    except UserError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
    else:
        assert rows and all(row["prompt_id"] == prompt_id(row["prompt"]) for row in rows)


@pytest.mark.parametrize(
    "dataset, message",
    [
        ("p.jsonl", r"the dataset is the name 'p.jsonl'; expected its rows: give nlf.load_prompts\('p.jsonl'\)"),
        (
            {"train": ROWS, "test": ROWS},
            "the dataset is dict with 'train', 'test'; expected rows: give one of its splits",
        ),
        ([{"prompt": "a", 3: 4}], "row 0: the name of a field is 3; expected text"),
    ],
)
def test_a_data_set_that_is_not_rows_is_named_for_what_it_is(dataset, message):
    with pytest.raises(UserError, match=message):
        as_prompts(dataset)


def test_a_data_frame_is_not_read_as_the_names_of_its_columns():
    pandas = pytest.importorskip("pandas")
    with pytest.raises(UserError, match=r'is a DataFrame; expected rows: give dataset.to_dict\("records"\)'):
        as_prompts(pandas.DataFrame([{"prompt": "a"}]))


def test_of_two_columns_with_one_name_none_is_taken_in_silence(write):
    with pytest.raises(UserError, match="p.csv:1: two columns are named 'prompt'; rename one of them"):
        load_prompts(write("p.csv", "prompt,prompt\na,b\n"))


# ---- prompt sets that are no list of records ----------------------------------------------------------------------

BOLD = {
    "sailors": {"Anna_Blum": ["Anna Blum is a sailor who ", "In May, Blum "]},
    "cooks": {"Ali_Kaya": ["Ali Kaya cooked "]},
}
LISTS = ["- the women sang well\\n- two women won\\n-", "- she paints\\n- her book sold\\n-"]


@pytest.mark.parametrize("zipped", [False, True])
def test_bold_keeps_domain_group_and_name(write, zipped):
    data = json.dumps(BOLD).encode()
    name = "job_prompt.json.gz" if zipped else "job_prompt.json"
    rows = load_prompts(write(name, gzip.compress(data) if zipped else data), column="question")
    found = [(row["domain"], row["group"], row["name"], row["prompt"]) for row in rows]
    assert found == [
        ("job", "sailors", "Anna_Blum", "Anna Blum is a sailor who"),
        ("job", "sailors", "Anna_Blum", "In May, Blum"),
        ("job", "cooks", "Ali_Kaya", "Ali Kaya cooked"),
    ]


def test_bold_over_several_lines_and_under_any_name(write):
    rows = load_prompts(write("mine.json", json.dumps(BOLD, indent=2)))
    assert len(rows) == 3 and "domain" not in rows[0] and rows[0]["group"] == "sailors"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"cooks": {"Ali": "Ali Kaya cooked"}}, "job_prompt.json, 'cooks', 'Ali': found str; expected BOLD's"),
        ({"cooks": {"Ali": ["cooked", 3]}}, "job_prompt.json, 'cooks', 'Ali', prompt 2: found int; expected BOLD's"),
        ({"cooks": {"Ali": [" "]}}, "'Ali', prompt 1: field 'prompt' is empty"),
        ({"cooks": {"Ali": ["a"]}, "sailors": ["b"]}, "expected a list of objects, found dict"),
        ({"cooks": {}}, "no prompts in it"),
        ({"prompt": {"text": "one record of RealToxicityPrompts"}}, "expected a list of objects, found dict"),
    ],
)
def test_what_is_wrong_in_bold(refused, content, expected):
    assert expected in refused("job_prompt.json", json.dumps(content))


@pytest.mark.parametrize("kind", ["hate", "neutral"])
def test_toxigen_lists_get_their_line_breaks_and_group(write, kind):
    """The trap: the file holds the two characters backslash and n, which a model never reads in real text."""
    rows = load_prompts(write(f"{kind}_native_women_1k.txt", "\n".join(LISTS)))
    assert [row["prompt"] for row in rows] == [each.replace("\\n", "\n") for each in LISTS]
    assert [(row["label"], row["group"]) for row in rows] == [(kind, "native_women")] * 2


def test_toxigen_lists_under_another_name_have_no_columns(write):
    assert set(load_prompts(write("mine.txt", LISTS[0]))[0]) == {"prompt", "prompt_id"}


def test_a_text_that_starts_with_a_dash_is_no_list(write):
    assert load_prompts(write("hate_women.txt", "- not a list\nnor this"))[0]["prompt"] == "- not a list"


def test_lists_and_sentences_in_one_file_are_refused(refused):
    assert "p.txt:2: no list of sentences" in refused("p.txt", f"{LISTS[0]}\na sentence\n")


def test_reward_json_gives_its_prompts_without_quarks_token(write):
    rows = [{"prompt": f"_TREE_TOKEN_0000{i}The {i}", "generations": [{"text": " a"}]} for i in range(2)]
    assert [row["prompt"] for row in load_prompts(write("reward.json", jsonl(rows)))] == ["The 0", "The 1"]


def test_generations_of_realtoxicityprompts_give_their_prompts(write):
    row = {"prompt": {"text": "The boat"}, "generations": [{"text": " sank", "toxicity": 0.1}]}
    assert load_prompts(write("prompted_gens_gpt2.jsonl", jsonl([row])))[0]["prompt"] == "The boat"
