"""Training on logged feedback: every shape trains a tiny model, beside rollouts or alone, and resumes with the same bits."""

import json

import numpy as np
import pytest
import tiny
import torch
from runs import killed, lines, make, on_call, same, weights

from nlf.data.pool import Pool
from nlf.data.rollouts import logged_parts
from nlf.errors import UserError
from nlf.training.trainer import ALTTrainer

ALONE = {"num_train_epochs": 0, "steps_per_iteration": None, "eval_strategy": "no", "max_completion_length": 12}
WORDS = (" the river is calm", " a quarrel")


def write(folder, rows, name="logs.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def rows(**feedback) -> list[dict]:
    """Two completions of each of eight prompts, the first with the first of the given values."""
    return [
        {"prompt": prompt["prompt"], "completion": word, **{name: values[i] for name, values in feedback.items()}}
        for prompt in tiny.PROMPTS[:8]
        for i, word in enumerate(WORDS)
    ]


PAIRS = [{"prompt": p["prompt"], "chosen": WORDS[0], "rejected": WORDS[1]} for p in tiny.PROMPTS[:8]]
SHAPES = {  # rows, the tags of the run, and the feedback of the first two rows
    "scores": (rows(reward=(0.9, 0.1)), ["Maximum Reward", "High-Moderate Reward", "Moderate Reward", "Low-Moderate Reward",
                                        "Lowest Reward"], ("High-Moderate Reward", "Low-Moderate Reward")),
    "levels": (rows(reward=(2, 0)) + rows(reward=(1, 1)), ["Maximum Reward", "Moderate Reward", "Lowest Reward"],
               ("Maximum Reward", "Lowest Reward")),
    "labels": (rows(label=(True, False)), ["Good response", "Bad response"], ("Good response", "Bad response")),
    "pairs": (PAIRS, ["Better response", "Worse response"], ("Better response", "Worse response")),
    "sentences": (rows(feedback=("Clear.", "Dull.")), ["Good response", "Bad response"], ("Clear.", "Dull.")),
    "scored sentences": (rows(feedback=("Clear.", "Dull."), score=(1, 0)), ["Maximum Reward", "Lowest Reward"], ("Clear.", "Dull.")),
    "ratings": (rows(helpfulness=(1, 0), honesty=(0, 1)),
                ["Maximum Helpfulness, and Maximum Honesty", "Lowest Helpfulness, and Lowest Honesty"],
                ("Maximum Helpfulness, and Lowest Honesty", "Lowest Helpfulness, and Maximum Honesty")),
    "completions": (rows(), ["Maximum Vowels", "High-Moderate Vowels", "Moderate Vowels", "Low-Moderate Vowels", "Lowest Vowels"],
                    ("Low-Moderate Vowels", "High-Moderate Vowels")),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_trains_alone(tmp_path, name):
    given, tags, words = SHAPES[name]
    trainer = make(tmp_path / "run", feedback=[write(tmp_path, given)], **ALONE)
    before = {k: v.clone() for k, v in trainer.policy.model.state_dict().items()}
    trainer.train()
    after = trainer.policy.model.state_dict()
    assert any(not torch.equal(before[k], after[k]) for k in after)
    assert trainer.args.tags == tags
    pool = Pool.load(tmp_path / "run", 0, since=1)
    assert len(pool) == (32 if name == "levels" else 16) and pool.logged.all()
    labels = trainer.feedback.words(pool, trainer.feedback.quantiles(pool), 0)
    assert (labels(0, 0)[0], labels(1, 0)[0]) == words
    assert labels(0, 0)[1] in {*words, *tags} - {words[0]} or name == "ratings"
    logged = [row for row in lines(tmp_path / "run") if "loss" in row]
    assert len(logged) == 2 * len(pool) // 8, "two passes over the rows, in steps of eight"
    assert not list((tmp_path / "run" / "rollouts").glob("iteration-*"))
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_token_ids_are_those_of_the_text_and_end_unless_the_completion_was_cut(tmp_path):
    cut = [row | {"finish_reason": "length"} for row in rows(label=(True, False))]
    made = {name: make(tmp_path / name, feedback=[write(tmp_path, given, f"{name}.jsonl")], **ALONE | {"max_completion_length": 9}, feedback_epochs=1)
            for name, given in (("whole", rows(label=(True, False))), ("cut", cut))}  # fmt: skip
    for name, trainer in made.items():
        trainer.train()
        pool, encode = Pool.load(tmp_path / name, 0, since=1), trainer.policy.tokenizer.encode
        assert pool.prompt_ids(0).tolist() == encode(tiny.PROMPTS[0]["prompt"])
        whole = encode(WORDS[0])
        assert pool.completion_ids(1).tolist() == encode(WORDS[1]) + [0] * (name == "whole")
        assert pool.completion_ids(0).tolist() == whole[:9] and len(whole) > 9  # over max_completion_length
        assert pool.ended.tolist() == [False, name == "whole"] * 8


def test_what_does_not_fit_the_model_is_counted(tmp_path, caplog):
    long = {"prompt": "x" * 200, "completion": " a", "label": True}
    make(tmp_path / "run", feedback=[write(tmp_path, [*rows(label=(True, False)), long])], **ALONE).train()
    assert "feedback: 1 of 17 rows are not used: longer than the 96 tokens that the model reads" in caplog.text
    assert len(Pool.load(tmp_path / "run", 0, since=1)) == 16
    same_start = [{"prompt": "a", "chosen": "b" * 20, "rejected": "b" * 30}]
    make(tmp_path / "two", feedback=[write(tmp_path, PAIRS + same_start)], **ALONE).train()
    assert "both completions begin with the same 12 tokens" in caplog.text
    with pytest.raises(UserError, match="no row fits the model"):
        make(tmp_path / "three", feedback=[write(tmp_path, same_start)], **ALONE).train()


def test_equal_completions_of_one_prompt_are_no_pair(tmp_path):
    """The trap: two equal samples in a line of generations were taken for a pair without a difference."""
    line = {
        "prompt": "the river",
        "completions": [" is", " is", "x" * 200],
        "completion_ids": [[1]] * 3,
        "ended": [True] * 3,
    }
    scored = [line | {"scores": {"local@2": {"reward": [0.1, i / 9, 0.5]}}} for i in range(4)]
    make(tmp_path / "run", feedback=[write(tmp_path, scored)], **ALONE | {"max_completion_length": 90}).train()
    assert len(Pool.load(tmp_path / "run", 0, since=1)) == 8, (
        "the third is longer than the model reads, and only it is left out"
    )


def test_logged_rows_stay_in_the_pool_beside_rollouts(tmp_path):
    """Two of the eight completions of a step are logged, from the first iteration on, and `pool_keep` keeps them."""
    trainer = make(tmp_path / "run", feedback=[write(tmp_path, rows(reward=(0.9, 0.1)))], feedback_epochs=0,
                   feedback_share=0.25, pool_keep=1, num_train_epochs=2, eval_strategy="no")  # fmt: skip
    trainer.train()
    pool = Pool.load(tmp_path / "run", 1, 1)
    assert np.bincount(pool.iteration + 1).tolist() == [16, 0, 20]
    quantiles = trainer.feedback.quantiles(pool)
    trainer.train_dataset.refresh(pool, quantiles, lambda row, i: (str(row), None), trainer.encoder, 1)
    draws = trainer.train_dataset._draws(pool.logged, quantiles, 1)
    for step in range(3):
        assert sum(pool.logged[draws[8 * step + i]] for i in range(8)) == 2
    assert trainer.args.tags[0] == "Maximum Vowels", "the words of the reward"
    assert [row["pool/size"] for row in lines(tmp_path / "run") if "pool/size" in row] == [36, 36]


def test_logged_rewards_are_cut_by_themselves(tmp_path):
    """The trap: ratings from 1 to 5 beside rewards from 0 to 1 would all be the best quantile."""
    trainer = make(tmp_path / "run", feedback=[write(tmp_path, rows(reward=(5, 1)))], feedback_epochs=1, num_train_epochs=1,
                   eval_strategy="no")  # fmt: skip
    trainer.train()
    pool = Pool.load(tmp_path / "run", 1, since=1)
    quantiles = trainer.feedback.quantiles(pool)
    assert quantiles[pool.logged].tolist() == [1, 3] * 8
    assert set(quantiles[~pool.logged]) >= {0, 4}
    sampled = pool.iteration == 1
    assert {pool.feedback(i) for i in np.flatnonzero(sampled)} == {"Maximum Vowels"}, (
        "the first iteration after the logs"
    )


def test_both_rows_of_a_pair_come_in_one_step(tmp_path):
    trainer = make(tmp_path / "run", feedback=[write(tmp_path, PAIRS)], **ALONE)
    trainer.train()
    pool = Pool.load(tmp_path / "run", 0, since=1)
    draws = trainer.train_dataset._draws(pool.logged, trainer.feedback.quantiles(pool), 0)
    for step in range(2):
        drawn = sorted(draws[8 * step + i] for i in range(8))
        assert [row // 2 for row in drawn[::2]] == [row // 2 for row in drawn[1::2]]


def test_a_sentence_without_a_score_is_contrasted_with_another_sentence(tmp_path):
    given = rows(feedback=("Clear.", "Dull."))
    trainer = make(tmp_path / "run", feedback=[write(tmp_path, given)], **ALONE)
    trainer.train()
    pool = Pool.load(tmp_path / "run", 0, since=1)
    words = trainer.feedback.words(pool, trainer.feedback.quantiles(pool), 0)
    assert {words(0, i)[1] for i in range(40)} >= {"Dull."}
    assert not {words(0, i)[1] for i in range(40)} & {"Clear."}


def test_attributes_take_the_columns_of_their_names(tmp_path):
    attributes = [{"name": "honesty", "reward": tiny.vowels, "tags": ["true", "so so", "false"]},
                  {"name": "wit", "reward": tiny.vowels, "tags": ["bright", "dull"]}]  # fmt: skip
    given = rows(honesty=(0.3, 0.1), helpfulness=(1, 2), wit=(1, 9))
    options = {
        **ALONE,
        "attributes": attributes,
        "feedback_columns": ["reward=honesty", "reward=helpfulness", "reward=wit"],
    }
    rewards = [tiny.vowels, tiny.vowels]
    trainer = make(tmp_path / "run", reward=rewards, feedback=[write(tmp_path, given)], **options)
    trainer.train()
    pool = Pool.load(tmp_path / "run", 0, since=1)
    assert {name: values[:2].tolist() for name, values in pool.by_function.items()} == {
        "vowels": [0.3, 0.1],
        "vowels_2": [1, 9],
    }
    words = trainer.feedback.words(pool, trainer.feedback.quantiles(pool), 0)
    assert (words(0, 0)[0], words(1, 0)[0]) == ("true, and dull", "false, and bright")
    with pytest.raises(
        UserError, match="the feedback has no numbers for 'wit'; it has honesty, helpfulness; name attributes"
    ):
        make(
            tmp_path / "two",
            reward=rewards,
            feedback=[write(tmp_path, given)],
            **options | {"feedback_columns": ["reward=honesty", "reward=helpfulness"]},
        )


@pytest.mark.parametrize(
    ("given", "changes", "words"),
    [
        (rows(helpfulness=(1, 0), honesty=(0, 1)), {"num_train_epochs": 1, "steps_per_iteration": 3}, "sampled completions need a scorer for each"),
        (rows(helpfulness=(1, 0), honesty=(0, 1)), {"tags": ["a", "b"]}, "every rating of the feedback has tags of its own"),
        ([{"prompt": [{"role": "user", "content": "a"}], "completion": "b", "reward": 1}], {"eval_strategy": "epoch"},
         "feedback holds messages, and the prompts of dataset_name or eval_dataset are text"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_the_run_is_refused(tmp_path, given, changes, words):
    with pytest.raises(UserError, match=words):
        make(tmp_path / "run", feedback=[write(tmp_path, given)], **ALONE | changes)


def test_conversations_are_rendered_with_their_feedback(tmp_path):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = tiny.CHAT_TEMPLATE
    user = [{"role": "user", "content": "the river"}]
    given = [
        {"prompt": user, "completion": [{"role": "assistant", "content": word}], "label": i == 0}
        for i, word in enumerate(WORDS)
    ]
    from runs import settings

    args = settings(tmp_path / "run", feedback=[write(tmp_path, given * 4)], **ALONE)
    trainer = ALTTrainer(tiny.model(), reward_funcs=tiny.vowels, args=args, processing_class=tokenizer)
    trainer.train()
    right = {tokenizer.decode(trainer.train_dataset[i].right) for i in range(8)}
    assert right == {f"<system>{tag} response\n<user>the river\n<assistant>" for tag in ("Good", "Bad")}


# ---- resume -------------------------------------------------------------------------------------------------------

MIXED = {"feedback_epochs": 1, "num_train_epochs": 1, "eval_strategy": "no", "save_strategy": "steps", "save_steps": 1}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The folder of a run on logged feedback and then on rollouts, which nobody stopped, and its feedback."""
    folder = tmp_path_factory.mktemp("unbroken")
    path = write(folder, rows(label=(True, False)))
    make(folder / "run", feedback=[path], **MIXED).train()
    return folder / "run", path


def in_the_first_pass(trainer):
    on_call(trainer, "compute_loss", 2)


def while_sampling(trainer):
    import nlf.training.collector

    on_call(nlf.training.collector, "write_part", 2)


def while_logged_rows_are_written(trainer):
    import nlf.training.logged

    on_call(nlf.training.logged, "write_part", 1)


@pytest.mark.parametrize("arm", [in_the_first_pass, while_sampling, while_logged_rows_are_written])
def test_a_killed_run_ends_with_the_same_weights(tmp_path, unbroken, arm):
    folder, path = unbroken

    def child():
        torch.set_num_threads(1)
        trainer = make(tmp_path / "run", feedback=[path], **MIXED)
        arm(trainer)
        trainer.train()

    killed(child)
    make(tmp_path / "run", feedback=[path], **MIXED).train(resume_from_checkpoint=True)
    assert same(weights(folder), weights(tmp_path / "run"))


def test_changed_feedback_is_noticed_and_a_moved_file_is_not(tmp_path, unbroken):
    import shutil

    folder, path = unbroken
    shutil.copytree(folder, tmp_path / "run")
    moved = shutil.copy(path, tmp_path / "moved.jsonl")
    make(tmp_path / "run", feedback=[str(moved)], **MIXED).train(resume_from_checkpoint=True)
    assert same(weights(folder), weights(tmp_path / "run"))
    changed = write(tmp_path, rows(label=(False, True)))
    with pytest.raises(UserError, match="was started with feedback_rows="):
        make(tmp_path / "run", feedback=[changed], **MIXED).train(resume_from_checkpoint=True)


def test_a_lost_part_of_the_logged_rows_is_made_again(tmp_path, unbroken):
    import shutil

    folder, path = unbroken
    shutil.copytree(folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")
    (part,) = logged_parts(tmp_path / "run")
    part.write_bytes(part.read_bytes()[:100])
    make(tmp_path / "run", feedback=[path], **MIXED).train(resume_from_checkpoint=True)
    assert same(weights(folder), weights(tmp_path / "run"))
