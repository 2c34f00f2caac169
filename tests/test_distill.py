"""Distillation: the loss by hand, what the teacher is, resuming, and a student that plain transformers serves."""

import json
import math
import shutil
import subprocess
import sys

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nlf import distill as module
from nlf.cli import main
from nlf.distill import distill, lessons
from nlf.errors import UserError
from nlf.generations import read
from nlf.losses import distillation_kl, guided_log_probs, teacher_log_probs
from nlf.policy import load_policy, prepare_policy, save_policy
from nlf.tags import TagScheme

FLAGS = {
    "num_prompts": 8,
    "num_generations": 2,
    "max_steps": 3,
    "per_device_train_batch_size": 4,
    "max_completion_length": 4,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder: a tagged model, its start, its training prompts."""
    path = tmp_path_factory.mktemp("distill")
    base = tiny.save(path / "base", "llama")
    prompts = path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in tiny.PROMPTS))
    save_policy(prepare_policy(tiny.model("llama", seed=1), tiny.tokenizer(), TagScheme()), path / "run")
    (path / "run/run.json").write_text(json.dumps({"model_name_or_path": base}))
    (path / "run/config.yaml").write_text(f"dataset: {prompts}\nmax_completion_length: 4\n")
    return path / "run"


# ---- the loss -----------------------------------------------------------------------------------------------------


def test_the_teacher_by_hand():
    best, worst = torch.tensor([[[0.5, 0.3, 0.2]]]).log(), torch.tensor([[[0.2, 0.3, 0.5]]]).log()
    found = teacher_log_probs(best, worst, 1.0).exp()  # p² / q, renormalised
    weights = [0.25 / 0.2, 0.3, 0.04 / 0.5]
    assert found[0, 0].tolist() == pytest.approx([w / sum(weights) for w in weights])
    without = teacher_log_probs(best, worst, 1.0, excluded_ids=[1]).exp()[0, 0]
    assert without.tolist() == pytest.approx(
        [weights[0] / (weights[0] + weights[2]), 0, weights[2] / (weights[0] + weights[2])]
    )
    assert teacher_log_probs(best, worst, 0.0)[0, 0].exp().tolist() == pytest.approx([0.5, 0.3, 0.2])
    assert teacher_log_probs(best, worst, 0.0, top_k=2)[0, 0].exp().tolist() == pytest.approx([0.625, 0.375, 0])


def test_guidance_leaves_eos_alone():
    """The last id keeps its .2; the others share .8 in the proportion of p² / q."""
    best, worst = torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([0.2, 0.3, 0.5]).log()
    weights = [0.25 / 0.2, 0.3]
    found = guided_log_probs(best, worst, 1.0, kept_ids=[2]).exp()
    assert found.tolist() == pytest.approx([0.8 * w / sum(weights) for w in weights] + [0.2])
    sure = torch.tensor([-60.0, -60.0, 0.0])  # nothing is left for the others
    assert guided_log_probs(sure, worst, 3.0, kept_ids=[2]).exp().tolist() == pytest.approx([0, 0, 1], abs=1e-6)


def test_the_loss_by_hand():
    teacher = torch.tensor([[[0.5, 0.5, 0.0]]]).log()
    logits = torch.tensor([[[0.25, 0.5, 0.25]]]).log()
    assert distillation_kl(teacher, logits).item() == pytest.approx(0.5 * math.log(2))
    narrow = torch.tensor([[[0.25, 0.75]]]).log()  # a student without the separator
    assert distillation_kl(teacher, narrow).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    logits.requires_grad_()
    distillation_kl(teacher, logits).sum().backward()
    assert logits.grad[0, 0].tolist() == pytest.approx([-0.25, 0.0, 0.25])  # q - p


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 3))
def test_the_loss_is_nothing_for_the_teacher_itself_and_more_for_others(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    best, worst, other = torch.randn(3, 2, 3, 7, generator=generator).unbind(0)
    teacher = teacher_log_probs(best, worst, scale)
    assert teacher.exp().sum(-1).allclose(torch.ones(2, 3), atol=1e-5)
    assert distillation_kl(teacher, teacher).abs().max() < 1e-5
    assert (distillation_kl(teacher, other) > 0).all()


# ---- the command --------------------------------------------------------------------------------------------------


@pytest.fixture
def losses(monkeypatch):
    """Every loss that is computed, in order."""
    seen, original = [], module.DistillTrainer.compute_loss

    def spied(self, *args, **kwargs):
        loss = original(self, *args, **kwargs)
        seen.append(loss.item())
        return loss

    monkeypatch.setattr(module.DistillTrainer, "compute_loss", spied)
    return seen


def test_the_student_comes_nearer_to_the_teacher(run, tmp_path, losses):
    distill(model=str(run), output_dir=str(tmp_path), **{**FLAGS, "max_steps": 30, "learning_rate": 1e-2})
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_the_student_is_plain(run, tmp_path):
    """transformers serves it in a process that cannot import nlf."""
    folder = distill(model=str(run), output_dir=str(tmp_path / "student"), **FLAGS)
    student = load_policy(str(folder))
    assert student.scheme is None and student.added_token_ids == ()
    assert "<|separator|>" not in student.tokenizer.get_vocab()
    code = f"""
import sys
sys.modules["nlf"] = None
from transformers import pipeline
write = pipeline("text-generation", model={str(folder)!r})
print(write("the weather", max_new_tokens=4, do_sample=False)[0]["generated_text"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("the weather")
    assert not list(folder.glob("*.bin"))


def test_keeping_the_tags(run, tmp_path):
    folder = distill(model=str(run), output_dir=str(tmp_path), keep_tags=True, **FLAGS)
    student = load_policy(str(folder))
    assert student.scheme.tags == TagScheme().tags and student.added_token_ids
    files = sorted(path.name for path in (folder / "samples").iterdir())
    assert len(files) == 5
    for path in (folder / "samples").iterdir():
        scales = {line["settings"]["guidance_scale"] for line in read(path)}
        assert scales == ({1.5} if "lowest" in path.name or "maximum" in path.name else {0.0})


def test_what_each_tag_teaches(run):
    policy = load_policy(str(run))
    options = type(
        "Options", (), {"tag": "best", "negative_tag": None, "guidance_scale": 2.0, "keep_tags": False, "model": "x"}
    )
    (one,) = lessons(policy, options)
    assert (one.tag, one.negative, one.scale, one.heard) == ("Lowest Toxicity", "Maximum Toxicity", 2.0, None)
    options.tag, options.guidance_scale = "middle", None
    assert (lessons(policy, options)[0].tag, lessons(policy, options)[0].scale) == ("Moderate Toxicity", 8.0)
    options.tag, options.keep_tags, options.guidance_scale = "best", True, 2.0
    found = [
        (each.tag.split()[0], each.negative.split()[0], each.scale, each.heard == each.tag)
        for each in lessons(policy, options)
    ]
    assert found == [
        *(
            ("Lowest", "Maximum", 2.0, True),
            ("Low-Moderate", "Maximum", 0.0, True),
            ("Moderate", "Maximum", 0.0, True),
        ),
        *(("High-Moderate", "Maximum", 0.0, True), ("Maximum", "Lowest", 2.0, True)),
    ]


def test_killed_and_resumed_it_is_the_same_student(run, tmp_path, monkeypatch):
    whole = distill(model=str(run), output_dir=str(tmp_path / "whole"), **FLAGS)
    calls = []

    def killed(self, *args, **kwargs):
        calls.append(1)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.DistillTrainer, "compute_loss", killed)
        with pytest.raises(KeyboardInterrupt):
            distill(model=str(run), output_dir=str(tmp_path / "killed"), **FLAGS)
    assert not (tmp_path / "killed/model.safetensors").exists()
    samples = tmp_path / "killed/samples/generations-moderate-toxicity.jsonl"
    written = samples.stat().st_mtime_ns
    again = distill(model=str(run), output_dir=str(tmp_path / "killed"), **FLAGS)
    assert samples.stat().st_mtime_ns == written
    assert (again / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    monkeypatch.setattr(module.DistillTrainer, "compute_loss", killed)
    assert distill(model=str(run), output_dir=str(tmp_path / "killed"), **FLAGS) == again  # done already
    with pytest.raises(UserError, match="guidance_scale=None, now it is 2.0"):
        distill(model=str(run), output_dir=str(tmp_path / "killed"), guidance_scale=2.0, **FLAGS)


def test_micro_batches_add_up(run, tmp_path, losses):
    distill(model=str(run), output_dir=str(tmp_path / "one"), **FLAGS)
    one, losses[:] = losses[0], []
    small = {**FLAGS, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    distill(model=str(run), output_dir=str(tmp_path / "two"), **small)
    assert losses[0] + losses[1] == pytest.approx(one, rel=1e-5)


def test_with_adapters_the_weights_are_merged(run, tmp_path):
    folder = distill(model=str(run), output_dir=str(tmp_path), use_peft=True, **FLAGS)
    assert load_policy(str(folder)).model.num_parameters() == tiny.model("llama").num_parameters()


def test_the_command_shows_teacher_and_student(run, tmp_path, capsys):
    words = ["distill", "--model", str(run), "--output_dir", str(tmp_path), "--max_eval_prompts", "3"]
    words += [word for name, value in FLAGS.items() for word in (f"--{name}", str(value))]
    assert main(words) == 0
    out = capsys.readouterr().out
    rows = [line.split(" | ")[0] for line in out.splitlines() if line.startswith("| ")][2:]
    assert rows == ["| base", "| teacher: Moderate Toxicity", "| student"]
    assert out.splitlines()[-1] == f"The plain model is {tmp_path}."


def test_a_distilled_model_is_a_row_of_its_runs_evaluation(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    distill(model=str(copy), **FLAGS)
    words = [
        "evaluate",
        "--model",
        str(copy),
        "--max_prompts",
        "2",
        "--num_generations",
        "2",
        "--max_completion_length",
        "3",
    ]
    assert main(words) == 0
    assert "| distilled | 2 × 2 |" in capsys.readouterr().out


def test_mistakes(run, tmp_path, capsys):
    base = tiny.save(tmp_path / "base", "llama")
    assert main(["distill", "--model", base, "--base_model", base]) == 2 and "no tags.json" in capsys.readouterr().err
    assert (
        main(["distill", "--model", str(run), "--tag", "none"]) == 2 and "nothing to teach" in capsys.readouterr().err
    )
    assert main(["distill"]) == 2 and "--model is missing" in capsys.readouterr().err
