"""A dial from a model without tags: its lessons and its loss by hand, the student, its folder, and what is refused."""

import json
import os
import shutil
import signal

import pytest
import runs
import tiny
import torch

from nlf.cli.main import main
from nlf.data.generations import read
from nlf.errors import UserError
from nlf.method.tags import SEPARATOR
from nlf.models.policy import Policy, load_policy
from nlf.models.reading import LogitsPlan
from nlf.training import distill as module
from nlf.training import lessons as lessons_module
from nlf.training.distill import distill
from nlf.training.lessons import dial_lessons

TAGS = ["Many vowels", "Some vowels", "Few vowels"]
FLAGS = {
    **{"num_prompts": 8, "num_generations": 2, "max_steps": 3},
    **{"per_device_train_batch_size": 4, "max_completion_length": 4, "tags": TAGS},
}
CONVERSATIONS = [{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in tiny.PROMPTS]


def plain_run(path, prompts=tiny.PROMPTS, template=None):
    """The folder of a run that trained a plain model only, in its `plain`, beside its base."""
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    for name, seed in (("base", 0), ("run/plain", 1)):
        for each in (tiny.model(seed=seed), tokenizer):
            each.save_pretrained(path / name)
    (path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    facts = {"model_name_or_path": str(path / "base"), "train_prompts": "of a test"}
    (path / "run/plain/run.json").write_text(json.dumps(facts))
    settings = (
        f"plain: only\ndataset: {path / 'prompts.jsonl'}\nmax_completion_length: 4\nreward_funcs: [tiny:vowels]\n"
    )
    (path / "run/plain/config.yaml").write_text(settings)
    return path / "run"


@pytest.fixture
def run(tmp_path):
    return plain_run(tmp_path)


def as_words(flags):
    return [
        str(word)
        for name, value in flags.items()
        for word in (f"--{name}", *(value if isinstance(value, list) else [value]))
    ]


# ---- what is taught -----------------------------------------------------------------------------------------------


def test_the_tags_lie_on_a_line_through_the_base():
    """s = 1.5, 0, -1.5 and 0 without a tag; the scale of guidance is s - 1."""
    found = [(each.student_tag, each.scale, each.share) for each in dial_lessons(["a", "b", "c"], 0.5)]
    assert found == [("a", 0.5, 3), ("b", -1.0, 1), ("c", -2.5, 3), (None, -1.0, 1)]
    assert [each.scale + 1 for each in dial_lessons([*"abcde"], None)] == pytest.approx([1.5, 0.75, 0, -0.75, -1.5, 0])


def test_the_loss_by_hand():
    """One token: q = (.5, .3, .2), p = (.2, .3, .5); under the worst tag, s = -1, the target is q²/p renormalised."""
    q, p = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.5])

    class Fixed(torch.nn.Module):
        def __init__(self, logits):
            super().__init__()
            self.logits = torch.nn.Parameter(logits)

        def forward(self, input_ids, **_):
            from types import SimpleNamespace

            return SimpleNamespace(logits=self.logits.expand(*input_ids.shape, -1))

    example = lessons_module.Example([1], [1], -2.0, [2, 1], [1], 1)
    (group,) = lessons_module.collate([example], 0)["groups"]
    tokenizer = tiny.tokenizer()
    teacher = Policy(tiny.model(), tokenizer)
    teacher.model = Fixed(p.log())
    teacher.__class__ = type("NoEnds", (Policy,), {"eos_token_ids": (), "banned_token_ids": ()})
    student = Fixed(torch.zeros(3))
    found = lessons_module.lesson_loss(student, teacher, group, LogitsPlan(False), base=Fixed(q.log()))
    weights = (q**2 / p) / (q**2 / p).sum()
    assert found.item() == pytest.approx((weights * (weights * 3).log()).sum().item(), rel=1e-5)
    found.backward()
    torch.testing.assert_close(student.logits.grad, 1 / 3 - weights)


# ---- the student --------------------------------------------------------------------------------------------------


def test_the_student_is_the_run_of_the_plain_model(run, monkeypatch):
    losses, original = [], module.DistillTrainer.training_step
    monkeypatch.setattr(
        module.DistillTrainer,
        "training_step",
        lambda *a, **k: losses.append(original(*a, **k).item()) or torch.tensor(losses[-1]),
    )
    folder = distill(model=str(run), **{**FLAGS, "max_steps": 60, "learning_rate": 1e-2})
    assert folder == run and sum(losses[-5:]) < 0.9 * sum(losses[:5])
    student = load_policy(str(folder))
    assert student.scheme.tags == tuple(TAGS) and len(student.added_token_ids) == 1
    names = sorted(path.name for path in (folder / "samples").iterdir())
    assert names == ["generations-base.jsonl", "generations-teacher.jsonl"]
    assert {line["feedback"] for name in names for line in read(folder / "samples" / name)} == {None}
    plain = load_policy(str(run / "plain"))

    def last(policy, text):
        with torch.no_grad():
            return (
                policy.model.eval()(**policy.tokenizer(text, return_tensors="pt")).logits[0, -1, :299].log_softmax(-1)
            )

    def distance(one, other):
        return (one.exp() * (one - other)).sum().item()

    text = tiny.PROMPTS[0]["prompt"]
    best, worst, bare = (last(student, tag + text) for tag in (TAGS[0] + SEPARATOR, TAGS[2] + SEPARATOR, ""))
    p = last(plain, text)
    assert distance(p, best) < distance(p, bare) < distance(p, worst)
    card = (folder / "README.md").read_text()
    assert (
        '`base` (0) through `plain` (1): "Many vowels" 1.5, "Some vowels" 0, "Few vowels" -1.5' in card
        and "Many vowels<|separator|>" in card
    )
    assert json.loads((folder / "run.json").read_text())["distilled_from"] == str(run / "plain")


def test_killed_and_resumed_it_is_the_same_student(run, tmp_path):
    whole = distill(model=str(run), output_dir=str(tmp_path / "whole"), **FLAGS)
    folder = tmp_path / "killed"

    def die(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    def work(place, name):
        setattr(place, name, die)
        distill(model=str(run), output_dir=str(folder), **FLAGS)

    for place, name in ((module.DistillTrainer, "compute_loss"), (module, "save_policy"), (module, "distilled_card")):
        runs.killed(lambda place=place, name=name: work(place, name))
        assert not (folder / "run.json").exists()
    distill(model=str(run), output_dir=str(folder), **FLAGS)
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_conversations_take_the_tags_in_a_message(tmp_path):
    run = plain_run(tmp_path, CONVERSATIONS, tiny.CHAT_TEMPLATE)
    student = load_policy(str(distill(model=str(run), **FLAGS)))
    assert student.scheme.conversational and student.scheme.separator is None and not student.added_token_ids


def test_any_model_whose_base_is_known_gets_a_dial(run, tmp_path):
    other = shutil.copytree(
        run / "plain", tmp_path / "other", ignore=shutil.ignore_patterns("run.json", "config.yaml")
    )
    words = [
        "distill",
        "--model",
        other,
        "--base_model",
        run.parent / "base",
        "--prompts",
        run.parent / "prompts.jsonl",
    ]
    assert main([*map(str, words), *as_words({**FLAGS, "max_eval_prompts": 2, "reward_funcs": "tiny:vowels"})]) == 0
    assert load_policy(str(other / "dial")).scheme.tags == tuple(TAGS)


def test_the_rate_follows_the_size_of_the_model(run):
    folder = distill(model=str(run), **FLAGS)
    parameters = sum(p.numel() for p in tiny.model().parameters())
    assert module.run_settings(folder)["learning_rate"] == pytest.approx(1e-3 * (3e6 / parameters) ** 0.5, rel=0.05)


def test_a_plain_run_trains_its_dial_at_the_end(tmp_path, capsys):
    """One command; then every command of a run with tags takes it."""
    base, prompts = tiny.save(tmp_path / "base"), tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in tiny.PROMPTS))
    flags = {
        **{"model_name_or_path": base, "dataset": prompts, "eval_dataset": prompts, "reward_funcs": "tiny:vowels"},
        **{"output_dir": tmp_path / "run", "num_train_epochs": 1, "steps_per_iteration": 2, "use_cpu": "true"},
        **{"per_device_train_batch_size": 4, "prompts_per_iteration": 8, "max_completion_length": 4},
        **{"plain": "only", "credit_coef": 1, "distill": "true", "eval_strategy": "no"},
    }
    assert main(["train", *as_words(flags)]) == 0
    tags = load_policy(str(tmp_path / "run")).scheme.tags
    assert tags[0] == "Maximum Vowels" and (tmp_path / "run/plain/model.safetensors").is_file()
    words = ["evaluate", "--model", tmp_path / "run", "--max_prompts", 2, "--num_generations", 2, "--sweep_tags"]
    assert main([*map(str, words), "--reward_funcs", "tiny:vowels"]) == 0
    assert (distill(model=str(tmp_path / "run"), num_prompts=2, max_steps=1) / "config.json").is_file()  # and back
    rows = [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert {"| base", "| plain", "| tag Lowest Vowels"} <= {*rows}
    assert main(["report", str(tmp_path / "run")]) == 0
    assert "Trained for 2 steps" in (tmp_path / "run/report.html").read_text()  # those of the plain model


# ---- what is refused ----------------------------------------------------------------------------------------------

MISTAKES = {  # flags, error
    "a tag of the teacher": (["--model", "RUN", "--tag", "best"], "--tag: RUN has no tags to choose from"),
    "tags to keep": (["--model", "RUN", "--keep_tags"], "--keep_tags: RUN has no tags to choose from"),
    "one tag": (["--model", "RUN", "--tags", "good"], "tags"),
    "no words": (["--model", "BASE", "--base_model", "BASE"], "has no tags and is of no run: name the words"),
    "no base": (["--model", "BASE", "--tags", "a", "b"], "does not name the model it was trained from"),
    "other tokens": (["--model", "RUN", "--base_model", "embedded"], "embedded has another vocabulary than"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line_and_nothing_is_written(run, tmp_path, capfd, name):
    places = {"RUN": str(run), "BASE": str(run.parent / "base")}
    flags, expected = MISTAKES[name]
    words = [places.get(word, word) for word in flags]
    assert main(["distill", *words, "--output_dir", str(tmp_path / "student")]) == 2
    (error,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("nlf:")]
    assert expected.replace("RUN", str(run / "plain")) in error
    assert not [path for path in (tmp_path / "student").glob("*") if path.name != ".lock"]


def test_a_run_that_has_tags_is_not_overwritten(run):
    (run / "config.json").write_text("{}")
    with pytest.raises(UserError, match="config.json"):
        distill(model=str(run / "plain"), **FLAGS)
    assert (run / "config.json").read_text() == "{}"
