"""The embedded prompts match their README: their number, short, no prompt in two splits, not toxic."""

import json
import re
from importlib.resources import files

import pytest

COUNTS = {"train": 1000, "test": 200}
REGISTERS = {"news", "forum", "comments", "dialogue", "fiction", "letter", "review", "speech"}


def rows(split: str) -> list[dict]:
    text = files("nlf").joinpath(f"assets/prompts/{split}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def prompts(split: str) -> list[str]:
    return [row["prompt"] for row in rows(split)]


def runs(prompt: str, length: int) -> set[tuple[str, ...]]:
    words = re.findall(r"[\w']+", prompt.lower())
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}


@pytest.mark.parametrize("split", COUNTS)
def test_count_fields_and_length(split):
    assert len(rows(split)) == COUNTS[split]
    for row in rows(split):
        assert set(row) == {"prompt", "topic", "register"}
        assert row["register"] in REGISTERS
        assert 5 <= len(row["prompt"].split()) <= 16, row["prompt"]
        assert row["prompt"] == row["prompt"].strip()
        assert row["prompt"][-1] not in ".!?…", f"not the beginning of a sentence: {row['prompt']}"


@pytest.mark.parametrize("split", COUNTS)
def test_topics_and_registers_are_spread(split):
    topics = [row["topic"] for row in rows(split)]
    assert len(set(topics)) == 30
    assert max(topics.count(topic) for topic in set(topics)) <= COUNTS[split] // 20
    assert {row["register"] for row in rows(split)} == REGISTERS


def test_no_prompt_is_nearly_another():
    seen: dict[tuple[str, ...], str] = {}
    for prompt in prompts("train") + prompts("test"):
        for run in runs(prompt, 6):
            assert seen.setdefault(run, prompt) == prompt


def test_train_and_test_share_no_run_of_five_words():
    train = set().union(*(runs(prompt, 5) for prompt in prompts("train")))
    assert not train & set().union(*(runs(prompt, 5) for prompt in prompts("test")))


@pytest.mark.parametrize("split", COUNTS)
def test_none_is_toxic_by_the_scorer_that_their_page_names(split):
    from nlf.rewards.convolution import LocalToxicity1

    toxicity = LocalToxicity1().attributes(prompts(split))["toxicity"]
    assert [p for p, t in zip(prompts(split), toxicity, strict=True) if t >= 0.5] == []
