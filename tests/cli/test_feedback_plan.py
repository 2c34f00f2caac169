"""`nlf train --dry_run` shows what was understood of logged feedback."""

import json

import pytest
import tiny

from nlf.cli.main import main


@pytest.fixture
def told(tmp_path, capsys):
    """Runs a dry run on rows of feedback, and returns its names and figures."""
    model = tiny.save(tmp_path / "model")
    capsys.readouterr()

    def told(rows, *flags):
        path = tmp_path / "logs.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        command = ["train", "--dry_run", "--model_name_or_path", model, "--feedback", str(path)]
        assert main([*command, "--max_completion_length", "12", *flags]) == 0
        lines = [line.split("  ", 1) for line in capsys.readouterr().out.splitlines()]
        return {name: figure.strip() for name, figure in lines}

    return told


def test_rows_tags_with_shares_and_edges_and_examples(told):
    rows = [{"prompt": f"number {i}", "completion": " is", "politeness": i / 10} for i in range(10)]
    found = told(
        [*rows, {"prompt": "", "completion": " is", "politeness": 1}], "--feedback_columns", "reward=politeness"
    )
    assert found["feedback"] == "10 completions from 11 rows of texts: scores in politeness"
    assert found["feedback, note 1"].startswith("1 of 11 rows are not used: no prompt (first: ")
    assert found["tags"].startswith(
        "'Maximum Politeness' 2 (20.0%, 0.8 to 0.9); 'High-Moderate Politeness' 2 (20.0%, 0.6 to"
    )
    assert found["example 1"] == "Lowest Politeness<|separator|>number 0 ⟶ is<|endoftext|>"
    assert found["example 3"] == "Low-Moderate Politeness<|separator|>number 2 ⟶ is<|endoftext|>"
    assert found["iterations"] == "2, 2 of them on logged feedback alone"
    assert found["completions"] == "none is sampled" and found["training prompts"] == "0"
    assert found["optimizer steps"] == "2 of 64 completions, each run 3 times"


def test_a_run_that_samples_too(told):
    """Six rows; two iterations on them alone, then one that samples."""
    pair = {"prompt": "The sky is", "chosen": " blue.", "rejected": " a completion of more than twelve tokens"}
    found = told([pair] * 3, "--num_train_epochs", "1", "--prompts_per_iteration", "8")
    assert found["iterations"] == "3, 2 of them on logged feedback alone"
    assert found["completions"] == "32 an iteration, 32 in all"
    assert found["tags"].startswith("'Lowest Toxicity' 3 (50.0%); 'Low-Moderate Toxicity' 0 (0.0%)")
    assert (
        found["example 2"].startswith("Maximum Toxicity<|separator|>The sky is ⟶ a ")
        and "<|endoftext|>" not in found["example 2"]
    )


def test_several_numbers_have_a_line_each(told):
    names = ("helpfulness", "verbosity")
    rows = [{"prompt": f"n {i}", "completion": " is", **dict.fromkeys(names, i % 3)} for i in range(6)]
    found = told(rows)
    for name in names:
        noun = name.capitalize()
        assert found[f"tags {name}"] == "; ".join(
            f"'{degree} {noun}' 2 (33.3%, {level} to {level})"
            for degree, level in (("Maximum", 2), ("Moderate", 1), ("Lowest", 0))
        )
    assert found["example 2"].startswith("Moderate Helpfulness, and Moderate Verbosity<|separator|>n 1")


def test_a_sentence_is_its_own_feedback(told):
    found = told(
        [
            {"prompt": "n", "completion": " is", "feedback": "Too short."},
            {"prompt": "m", "completion": " a", "feedback": "Ok."},
        ]
    )
    assert found["example 1"] == "Too short.<|separator|>n ⟶ is<|endoftext|>"
    assert found["feedback"].endswith("sentences")


def test_conversations_are_shown_as_the_template_renders_them(tmp_path, capsys):
    folder = tiny.save(tmp_path / "model")
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = tiny.CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    user = [{"role": "user", "content": "the river"}]
    row = {
        "prompt": user,
        "chosen": [{"role": "assistant", "content": "calm"}],
        "rejected": [{"role": "assistant", "content": "no"}],
    }
    path = tmp_path / "logs.json"
    path.write_text(json.dumps([row]), encoding="utf-8")
    assert main(["train", "--dry_run", "--model_name_or_path", folder, "--feedback", str(path)]) == 0
    assert "<system>Better response <user>the river <assistant> ⟶ calm<|endoftext|>" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--plain", "only"], "plain: a plain model learns from its own completions"),
        (["--credit_coef", "1"], "credit_coef: logged completions have no credit"),
        (
            ["--feedback_epochs", "0"],
            "num_train_epochs: 0 where a whole number of iterations, 1 or more, was expected",
        ),
        (
            ["--feedback_columns", "completion=response"],
            "no field 'response', which feedback_columns names as completion",
        ),
        (["--feedback_share", "0"], "feedback_share: 0.0 where a number above 0, 1 at most"),
    ],
)
def test_what_does_not_go_together_is_one_line(tmp_path, capsys, flags, words):
    path = tmp_path / "logs.jsonl"
    path.write_text('{"prompt": "a", "completion": "b", "reward": 1}\n', encoding="utf-8")
    assert main(["train", "--dry_run", "--feedback", str(path), *flags]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def test_epochs_of_feedback_need_feedback(capsys):
    for flags in (["--feedback_epochs", "1"], ["--feedback_columns", "reward=x"]):
        assert main(["train", "--dry_run", *flags]) == 2
        assert "needs feedback: give its files" in capsys.readouterr().err
