"""Which words the list of English and rude words keeps."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    pytest.importorskip("sklearn")
    return pytest.importorskip("english_words")


def test_a_stretched_word_is_left_out_where_the_short_one_is_usual(tool):
    counts = Counter({"so": 90, "sooo": 9, "www": 7, "hmmm": 3, "hmm": 5})
    assert [word for word in counts if tool.stretched(word, counts)] == ["sooo", "hmmm"]


def test_a_rare_rude_word_that_is_a_usual_one_misspelt_is_left_out(tool):
    usual = {"fuck", "shit"}
    assert [w for w in ("fuck", "fack", "phuck", "fvck", "shits", "wanker") if tool.misspelt(w, usual)] == [
        *("fack", "phuck", "fvck"),
    ]


def test_words_of_two_sources_are_listed_by_frequency_and_test_documents_are_not_read(tool, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "MIN_DOCUMENTS", 2)
    monkeypatch.setattr(tool, "MIN_SPANS", 1)

    def corpus(name: str, rows: list[dict]) -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with gzip.open(tmp_path / name, "wt") as lines:
            lines.writelines(json.dumps(row) + "\n" for row in rows)

    def document(part: str, i: int) -> str:
        return [name for n in range(999) if tool.split_of(name := f"d{n}") == part][i]

    posts = [{"id": document("train", i), "title": "", "text": text} for i, text in enumerate(["The dog", "The cat!"])]
    corpus("lm-reddit-posts/general.jsonl.gz", [*posts, {"id": document("test", 0), "title": "", "text": "The cow"}])
    corpus("lm-reddit-posts/rude.jsonl.gz", [{"id": document("train", 5), "title": "", "text": "the dog, a cow"}])
    text = next(t for n in range(99) if tool.split_of(tool.text_document(t := f"you clown {n}")) == "train")
    corpus("labelled-toxic-spans/semeval2021_spans.jsonl.gz", [{"text": text, "toxic_char_ranges": [[4, 9]]}])
    (tmp_path / "word-lists").mkdir()
    (tmp_path / "word-lists/surge_profanity_en.csv").write_text("text\nDamn\nf*ck\n")
    (tmp_path / "word-lists/ldnoobw_en.txt").write_text("two words\nhell\n")
    assert tool.frequent_words(tmp_path) == (["the", "dog"], ["clown", "damn", "hell"])
