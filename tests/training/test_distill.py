"""Distillation: the loss by hand, the teacher's distribution, resuming, and refused options."""

import json
import math
import multiprocessing
import os
import random
import resource
import shutil
import signal
from pathlib import Path

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel

from nlf.cli.main import main
from nlf.config import DistillOptions
from nlf.data.generations import read
from nlf.errors import UserError
from nlf.evaluation import evaluate as evaluate_module
from nlf.evaluation import sample as sample_module
from nlf.method.losses import distillation_kl, guided_log_probs, teacher_log_probs
from nlf.method.tags import SEPARATOR, TagScheme
from nlf.models.policy import Policy, load_model, load_policy, prepare_policy, save_policy
from nlf.models.reading import LogitsPlan
from nlf.training import distill as module
from nlf.training import lessons as lessons_module
from nlf.training.distill import distill, is_done
from nlf.training.lessons import lessons

fork = multiprocessing.get_context("fork")
FLAGS = {
    "num_prompts": 8,
    "num_generations": 2,
    "max_steps": 3,
    "per_device_train_batch_size": 4,
    "max_completion_length": 4,
}


def save_run(path, architecture="llama", template=None, prompts=tiny.PROMPTS, vocab_size=None):
    """A run folder with a tagged model, its start and its training prompts."""
    tokenizer, start = tiny.tokenizer(), tiny.model(architecture, vocab_size=vocab_size)
    tokenizer.chat_template = template
    for each in (start, tokenizer):
        each.save_pretrained(path / "base")
    (path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    tagged = tiny.model(architecture, 1, vocab_size)
    scheme = TagScheme() if template is None else TagScheme(separator=None)
    save_policy(prepare_policy(tagged, tokenizer, scheme), path / "run")
    (path / "run/run.json").write_text(json.dumps({"model_name_or_path": str(path / "base")}))
    (path / "run/config.yaml").write_text(f"dataset: {path / 'prompts.jsonl'}\nmax_completion_length: 4\n")
    return path / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("distill"))


def logits(model, tokenizer, text="the weather is warm"):
    """Logits after a text, `(V,)`."""
    with torch.no_grad():
        return model.eval()(**tokenizer(text, return_tensors="pt")).logits[0, -1]


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
    """The last id keeps its .2; the other ids share .8 in proportion to p² / q."""
    best, worst = torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([0.2, 0.3, 0.5]).log()
    weights = [0.25 / 0.2, 0.3]
    found = guided_log_probs(best, worst, 1.0, kept_ids=[2]).exp()
    assert found.tolist() == pytest.approx([0.8 * w / sum(weights) for w in weights] + [0.2])
    sure = torch.tensor([-60.0, -60.0, 0.0])  # no probability is left for the other ids
    assert guided_log_probs(sure, worst, 3.0, kept_ids=[2]).exp().tolist() == pytest.approx([0, 0, 1], abs=1e-6)


def test_a_teacher_cut_to_its_likeliest_tokens_by_hand():
    best, worst = torch.tensor([[[0.4, 0.3, 0.2, 0.1]]]).log(), torch.tensor([[[0.2, 0.3, 0.4, 0.1]]]).log()
    cut = teacher_log_probs(best, worst, 1.0, top_k=2)  # p² / q: .8, .3, .1, .1
    assert cut[0, 0].exp().tolist() == pytest.approx([8 / 11, 3 / 11, 0, 0])
    logits = torch.tensor([[[0.25, 0.25, 0.25, 0.25]]]).log()
    expected = 8 / 11 * math.log(32 / 11) + 3 / 11 * math.log(12 / 11)
    assert distillation_kl(cut, logits).item() == pytest.approx(expected)
    # the last id, EOS, keeps its .1, the others share .9: .6, .225, .075; the first, the separator, leaves before the cut
    both = teacher_log_probs(best, worst, 1.0, kept_ids=[3], excluded_ids=[0], top_k=2)
    assert both[0, 0].exp().tolist() == pytest.approx([0, 9 / 13, 0, 4 / 13])


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


def naive_lesson(student, teacher, examples, top_k):
    """The loss computed one row at a time, without padding, from all logits, by autograd."""
    total = 0.0
    for e in examples:

        def logits_of(net, query, completion=e.completion):
            return net(input_ids=torch.tensor([query + completion])).logits[0, len(query) - 1 : -1]

        with torch.no_grad():
            best, worst = (logits_of(teacher.model, query).log_softmax(-1) for query in (e.best, e.worst))
            p = (1 + e.scale) * best - e.scale * worst
            p[:, 0] = -torch.inf  # EOS keeps its probability
            p = p.softmax(-1) * (1 - best[:, :1].exp())
            p[:, 0] = best[:, 0].exp()
            p = p[:, :299]  # the separator is the last id
            if top_k:
                p = p * (p >= p.topk(top_k, dim=-1).values[:, -1:])
            p = p / p.sum(-1, keepdim=True)
        log_q = logits_of(student, e.student).log_softmax(-1)[:, :299]
        total = total + (torch.xlogy(p, p) - p * log_q).sum()
    return total / examples[0].num_tokens


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize(
    "options", [{}, {"most_logits": 300 * 7}, {"bare": False}, {"pass_tokens": 10, "top_k": 5, "most_logits": 900}]
)
def test_loss_and_gradients_are_the_naive_ones(architecture, options):
    student, model = tiny.model(architecture, seed=1).double(), tiny.model(architecture, seed=2).double()
    teacher = Policy(model, tiny.tokenizer(), None, None, (299,))
    draw = random.Random(0)

    def ids(most):
        return draw.choices(range(1, 299), k=draw.randint(1, most))

    rows = [(ids(9), ids(7)) for _ in range(7)]
    tokens = sum(len(completion) for _, completion in rows)
    examples = [
        lessons_module.Example(ids(4) + q, ids(4) + q, draw.choice([0, 0.5, 2]), q, c, tokens) for q, c in rows
    ]
    plan = LogitsPlan(options.get("bare", True), most_logits=options.get("most_logits"))
    groups = lessons_module.collate(examples, 0, options.get("pass_tokens"))["groups"]
    top_k = options.get("top_k", 0)
    found = sum(lessons_module.lesson_loss(student, teacher, group, plan, top_k) for group in groups)
    expected = naive_lesson(student, teacher, examples, top_k)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    weights = list(student.parameters())
    for mine, theirs in zip(*(torch.autograd.grad(loss, weights) for loss in (found, expected)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9)


# ---- the command --------------------------------------------------------------------------------------------------


@pytest.fixture
def losses(monkeypatch):
    """The losses of all training steps, in order."""
    seen, original = [], module.DistillTrainer.training_step

    def spied(self, *args, **kwargs):
        loss = original(self, *args, **kwargs)
        seen.append(loss.item())
        return loss

    monkeypatch.setattr(module.DistillTrainer, "training_step", spied)
    return seen


def test_the_student_comes_nearer_to_the_teacher(run, tmp_path, losses):
    distill(model=str(run), output_dir=str(tmp_path), **{**FLAGS, "max_steps": 30, "learning_rate": 1e-2})
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_keeping_the_tags(run, tmp_path):
    folder = distill(model=str(run), output_dir=str(tmp_path), keep_tags=True, **FLAGS)
    student = load_policy(str(folder))
    assert student.scheme.tags == TagScheme().tags and student.added_token_ids
    files = sorted(path.name for path in (folder / "samples").iterdir())
    assert len(files) == 5
    for path in (folder / "samples").iterdir():
        scales = {line["settings"]["guidance_scale"] for line in read(path)}
        assert scales == ({1.5} if "lowest" in path.name or "maximum" in path.name else {0.0})


def test_a_model_trained_by_credit_teaches_its_best_tag_with_little_guidance(run, monkeypatch):
    """Its tags lie further apart: 8 from the middle tag would leave fluent text."""
    monkeypatch.setattr("nlf.training.lessons.trained_run", lambda model: {"credit_coef": 1.0})
    (one,) = lessons(load_policy(str(run)), DistillOptions())
    assert (one.tag, one.scale) == ("Lowest Toxicity", 1.0)
    (one,) = lessons(load_policy(str(run)), DistillOptions(tag="middle", guidance_scale=8.0))
    assert (one.tag, one.scale) == ("Moderate Toxicity", 8.0)


def test_what_each_tag_teaches(run):
    policy = load_policy(str(run))
    options = DistillOptions(tag="best", guidance_scale=2.0)
    (one,) = lessons(policy, options)
    assert (one.tag, one.negative, one.scale, one.student_tag) == ("Lowest Toxicity", "Maximum Toxicity", 2.0, None)
    options.tag, options.guidance_scale = "middle", None
    (one,) = lessons(policy, options)
    assert (one.tag, one.scale) == ("Moderate Toxicity", 8.0)
    options.tag, options.keep_tags, options.guidance_scale = "best", True, 2.0
    found = [
        (each.tag.split()[0], each.negative.split()[0], each.scale, each.student_tag == each.tag)
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
    """SIGKILL in the middle of a sampled line, while training, while weights are written, and afterwards."""
    whole = distill(model=str(run), output_dir=str(tmp_path / "whole"), **FLAGS)
    folder = tmp_path / "killed"
    samples = folder / "samples/generations-moderate-toxicity.jsonl"

    def half_a_line(path, rows):
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(rows[0])[:50])
        die()

    def half_a_model(_, temporary):
        temporary.mkdir()
        (temporary / "model.safetensors").write_text("half")
        die()

    for place, name, killing in (
        (sample_module, "append", half_a_line),
        (module.DistillTrainer, "compute_loss", die),
        (module, "save_policy", half_a_model),
        (module, "distilled_card", die),
    ):
        assert killed(lambda: distill(model=str(run), output_dir=str(folder), **FLAGS), place, name, killing)
        assert not (folder / "run.json").exists()
        written = samples.stat().st_mtime_ns
    again = distill(model=str(run), output_dir=str(folder), **FLAGS)
    assert samples.stat().st_mtime_ns == written
    assert samples.read_bytes() == (whole / "samples" / samples.name).read_bytes()
    assert (again / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert not list(folder.glob(".*"))
    monkeypatch.setattr(module.DistillTrainer, "compute_loss", die)
    assert distill(model=str(run), output_dir=str(folder), **FLAGS) == again  # done already
    with pytest.raises(UserError, match="guidance_scale=None, now it is 2.0"):
        distill(model=str(run), output_dir=str(folder), guidance_scale=2.0, **FLAGS)


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def killed(work, place, name, killing) -> bool:
    """Whether a child process that does `work` is killed by `killing`, which replaces a function."""

    def child():
        torch.set_num_threads(1)
        setattr(place, name, killing)
        work()

    process = fork.Process(target=child)
    process.start()
    process.join(120)
    return process.exitcode == -signal.SIGKILL


def test_micro_batches_add_up(run, tmp_path, losses):
    distill(model=str(run), output_dir=str(tmp_path / "one"), **FLAGS)
    one, losses[:] = losses[0], []
    small = {**FLAGS, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    distill(model=str(run), output_dir=str(tmp_path / "two"), **small)
    # a KL of .007 is a difference of log-probabilities of about 5, which float32 rounds at 5e-7, by machine
    assert losses[0] + losses[1] == pytest.approx(one, rel=1e-5, abs=5e-7)


# ---- kinds of teachers and students -------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2"], ids=["untied", "tied"])
@pytest.mark.parametrize("keep_tags", [False, True])
def test_with_adapters_the_weights_are_merged(tmp_path, architecture, keep_tags):
    """The saved model is plain; `adapter/` over the start gives the same logits."""
    run = save_run(tmp_path, architecture)
    flags = {**FLAGS, "use_peft": True, "learning_rate": 1e-2, "keep_tags": keep_tags}
    folder = distill(model=str(run), output_dir=str(tmp_path / "student"), **flags)
    merged, tokenizer = load_model(str(folder))
    start, _ = load_model(str(run if keep_tags else tmp_path / "base"))
    assert {n: p.shape for n, p in merged.named_parameters()} == {n: p.shape for n, p in start.named_parameters()}
    text = f"{TagScheme().best}{SEPARATOR}the weather is" if keep_tags else "the weather is"
    before, after = (logits(each, tokenizer, text) for each in (start, merged))
    assert (after - before).abs().max() > 1e-3
    adapted = PeftModel.from_pretrained(start, folder / "adapter")
    torch.testing.assert_close(logits(adapted, tokenizer, text), after, rtol=1e-4, atol=1e-5)


def test_a_teacher_trained_with_adapters(tmp_path, losses):
    """The run folder holds the merged model; the last stage of training makes a plain model of it."""
    base, prompts = tiny.save(tmp_path / "base", "llama"), tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in tiny.PROMPTS))
    flags = {
        **{"model_name_or_path": base, "dataset": prompts, "eval_dataset": prompts, "reward_funcs": "tiny:vowels"},
        **{"output_dir": tmp_path / "run", "num_train_epochs": 1, "steps_per_iteration": 20, "use_cpu": "true"},
        **{"per_device_train_batch_size": 4, "prompts_per_iteration": 8, "max_completion_length": 4},
        **{
            "use_peft": "true",
            "beta": 0.01,
            "learning_rate": 5e-2,
            "distill": "true",
            "max_eval_prompts": 2,
            "eval_num_generations": 2,
        },
    }
    assert main(["train", *(str(word) for name, value in flags.items() for word in (f"--{name}", value))]) == 0
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    folder = tmp_path / "run/distilled"
    student, tokenizer = load_model(str(folder))
    assert len(tokenizer) == len(tiny.tokenizer()) and not hasattr(student, "peft_config")
    assert student.num_parameters() == tiny.model("llama").num_parameters()
    assert not (folder / "adapter").exists() and (tmp_path / "run/adapter").is_dir()


CONVERSATIONS = [{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in tiny.PROMPTS]


def test_conversations(tmp_path, losses, monkeypatch):
    """The teacher reads its feedback in the system message; the student reads the bare conversation."""
    run = save_run(tmp_path, template=tiny.CHAT_TEMPLATE, prompts=CONVERSATIONS)
    tokenizer, seen, original = tiny.tokenizer(), [], module.collate

    def spied(*args, **kwargs):
        inputs = original(*args, **kwargs)
        for group in inputs["groups"]:
            texts = [tokenizer.batch_decode(group[who]["input_ids"]) for who in ("student", "teacher")]
            seen.extend(zip(texts[0], texts[1], texts[1][len(texts[0]) :], strict=False))
        return inputs

    monkeypatch.setattr(module, "collate", spied)
    folder = distill(model=str(run), **{**FLAGS, "max_steps": 20, "learning_rate": 1e-2})
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    for student, best, worst in seen:
        asked = student.replace("<|endoftext|>", "")
        assert asked.startswith("<user>") and "Toxicity" not in student and SEPARATOR not in best + worst
        assert best.replace("<|endoftext|>", "") == f"<system>Moderate Toxicity\n{asked}"
        assert worst.replace("<|endoftext|>", "") == f"<system>Maximum Toxicity\n{asked}"
    assert load_policy(str(folder)).tokenizer.chat_template == tiny.CHAT_TEMPLATE
    assert (
        "print(write([{'role': 'user', 'content': 'What is the weather like in the mountains?'}]"
        in (folder / "README.md").read_text()
    )


def test_conversations_with_their_tags(tmp_path):
    run = save_run(tmp_path, template=tiny.CHAT_TEMPLATE, prompts=CONVERSATIONS)
    folder = distill(model=str(run), keep_tags=True, **FLAGS)
    assert load_policy(str(folder)).scheme.tags == TagScheme().tags
    card = (folder / "README.md").read_text()
    assert "pypi.org" not in card
    assert (
        "[{'role': 'system', 'content': 'Lowest Toxicity'}, {'role': 'user', 'content': 'What is the weather like"
        in card
    )


def test_a_teacher_cut_to_few_tokens(run, tmp_path, losses, capsys):
    """With equal samples, the student learns something else."""
    flags = {**FLAGS, "max_steps": 30, "learning_rate": 1e-2}
    whole = distill(model=str(run), output_dir=str(tmp_path / "whole"), **flags)
    first, losses[:] = losses[0], []
    words = ["distill", "--model", str(run), "--output_dir", str(tmp_path / "cut"), "--teacher_top_k", "5"]
    assert main([*words, "--max_eval_prompts", "2", *as_words(flags)]) == 0
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5]) and losses[0] > first
    samples = [next((folder / "samples").iterdir()).read_bytes() for folder in (whole, tmp_path / "cut")]
    assert samples[0] == samples[1]
    assert (whole / "model.safetensors").read_bytes() != (tmp_path / "cut/model.safetensors").read_bytes()


def test_rows_that_name_no_token_are_not_taught(tmp_path, monkeypatch):
    """Guidance would blow up the probabilities that both tags give to padding rows of the vocabulary."""
    run = save_run(tmp_path, vocab_size=tiny.model().config.vocab_size + 20)
    seen, original = [], lessons_module.teacher_log_probs
    monkeypatch.setattr(
        lessons_module, "teacher_log_probs", lambda *a, **k: seen.append(original(*a, **k)) or seen[-1]
    )
    distill(model=str(run), **FLAGS)
    known = len(tiny.tokenizer())  # the separator and the padding rows follow
    assert seen[0].shape[-1] == known + 20 and (seen[0][..., known:] == -torch.inf).all()


# ---- the table ----------------------------------------------------------------------------------------------------


def as_words(flags):
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def test_the_command_loads_its_teacher_once(run, tmp_path, monkeypatch):
    loaded, original = [], module.load_for_commands
    for place in (module, evaluate_module):
        monkeypatch.setattr(
            place,
            "load_for_commands",
            lambda model, *rest, **named: loaded.append(model) or original(model, *rest, **named),
        )
    words = ["distill", "--model", str(run), "--output_dir", str(tmp_path), "--max_eval_prompts", "2"]
    assert main([*words, *as_words(FLAGS)]) == 0
    assert loaded.count(str(run)) == 1


def test_the_command_shows_teacher_and_student(run, tmp_path, capsys):
    words = ["distill", "--model", str(run), "--output_dir", str(tmp_path), "--max_eval_prompts", "3"]
    assert main([*words, *as_words(FLAGS)]) == 0
    out = capsys.readouterr().out
    rows = [line.split(" | ")[0] for line in out.splitlines() if line.startswith("| ")][2:]
    assert rows == ["| base", "| teacher: Moderate Toxicity", "| student", "| noise floor"]
    assert out.splitlines()[-1] == f"model: {tmp_path}"


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


def test_the_commands_of_the_page(run, tmp_path, monkeypatch, capsys):
    """The commands of docs/distillation.md, with smaller sizes."""
    page = (Path(__file__).parents[2] / "docs/distillation.md").read_text(encoding="utf-8")
    commands = [
        line.partition("#")[0].split()[1:] for line in page.splitlines() if line.startswith("    nlf distill ")
    ]
    shutil.copytree(run, tmp_path / "runs/demo")
    monkeypatch.chdir(tmp_path)
    assert len(commands) == 3
    for words in commands:
        assert main([*words, *as_words(FLAGS), "--max_eval_prompts", "1"]) == 0
        folder = Path(capsys.readouterr().out.splitlines()[-1].removeprefix("model: "))
        assert (folder / "config.json").is_file() and (folder / "tags.json").exists() == ("--keep_tags" in words)


# ---- what is refused ----------------------------------------------------------------------------------------------

MISTAKES = {  # flags, error
    "no model": ([], "--model is missing"),
    "no such model": (["--model", "./no-model"], "cannot load a causal language model from './no-model'"),
    "no known base": (["--model", "TAGGED"], "does not name the model it was trained from; name it with --base_model"),
    "missing base": (["--model", "RUN", "--base_model", "./no-base"], "cannot load a causal language model from './no-base'"),
    "no tag": (["--model", "RUN", "--tag", "none"], "nothing to teach"),
    "unknown tag": (["--model", "RUN", "--tag", "Nice"], "unknown tag 'Nice'; this model's tags are 'Lowest Toxicity'"),
    "unknown negative": (["--model", "RUN", "--negative_tag", "Nice"], "unknown tag 'Nice'"),
    "empty prompts": (["--model", "RUN", "--prompts", "EMPTY"], "empty.jsonl: no prompts in it"),
    "mixed prompts": (["--model", "RUN", "--prompts", "MIXED"], "some prompts are text and some are messages"),
    "no steps": (["--model", "RUN", "--max_steps", "0"], "max_steps: 0 where a number above 0 was expected"),
    "other tokens": (["--model", "RUN", "--base_model", "embedded"], "embedded has another vocabulary than"),
    "a file for a folder": (["--model", "RUN", "--output_dir", "EMPTY"], "cannot write"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line_and_nothing_is_written(run, tmp_path, capfd, name):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "mixed.jsonl").write_text('{"prompt": "a b"}\n' + json.dumps(CONVERSATIONS[0]) + "\n")
    places = {
        "RUN": run,
        "TAGGED": tmp_path / "tagged",
        "EMPTY": tmp_path / "empty.jsonl",
        "MIXED": tmp_path / "mixed.jsonl",
    }
    shutil.copytree(run, tmp_path / "tagged", ignore=shutil.ignore_patterns("config.yaml", "run.json"))
    flags, expected = MISTAKES[name]
    words = ["--output_dir", str(tmp_path / "student"), *(str(places.get(word, word)) for word in flags)]
    assert main(["distill", *words]) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("nlf:")]
    assert len(errors) == 1 and expected in errors[0], errors
    assert not (tmp_path / "student").exists()


def test_an_option_that_there_is_not(run):
    with pytest.raises(UserError, match="distill has no option 'guidance'; there are model, .*guidance_scale"):
        distill(model=str(run), guidance=2.0)
    with pytest.raises(UserError, match="num_prompts: 0"):
        distill(model=str(run), num_prompts=0)


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ("a: [1", "config.yaml:1: not YAML"),
        ("- 1", "config.yaml:1: one `name: value`"),
        ("", "does not record the prompts"),
    ],
)
def test_settings_of_the_run_that_are_broken(run, tmp_path, broken, told, capsys):
    folder = shutil.copytree(run, tmp_path / "run")
    (folder / "config.yaml").write_text(broken)
    assert main(["distill", "--model", str(folder)]) == 2
    assert told in capsys.readouterr().err and not (folder / "distilled").exists()


@pytest.mark.parametrize("what", ["a model", "a run", "the teacher"])
def test_a_folder_that_holds_something_else_stays_as_it_is(run, tmp_path, what):
    places = {"a model": run.parent / "base", "a run": tmp_path / "other", "the teacher": run}
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.yaml").write_text("dataset: embedded\n")
    files = {path: path.stat().st_mtime_ns for path in places[what].iterdir()}
    with pytest.raises(UserError, match="is there already and would be overwritten; move it away, or choose another"):
        distill(model=str(run), output_dir=str(places[what]), **FLAGS)
    assert {path: path.stat().st_mtime_ns for path in places[what].iterdir()} == files


@pytest.mark.parametrize("size", [2_000, 30_000], ids=["samples", "weights"])
def test_a_full_disk(run, tmp_path, size, capfd):
    """A limit on file size stands in for a full disk. Samples are kept, and the same command finishes the work."""

    def child():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        raise SystemExit(main(["distill", "--model", str(run), "--output_dir", str(tmp_path), *as_words(FLAGS)]))

    process = fork.Process(target=child)
    process.start()
    process.join(120)
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("nlf:")]
    assert process.exitcode == 2 and len(errors) == 1 and "cannot write" in errors[0], errors
    assert not (tmp_path / "config.json").exists() and not list(tmp_path.glob(".saving*"))
    assert (distill(model=str(run), output_dir=str(tmp_path), **FLAGS) / "model.safetensors").is_file()


def test_prompts_of_another_kind_are_refused_before_anything_is_written(tmp_path):
    run = save_run(tmp_path, template=tiny.CHAT_TEMPLATE, prompts=CONVERSATIONS)
    (tmp_path / "texts.txt").write_text("the river\n")
    fields = json.loads((run / "tags.json").read_text())
    (run / "tags.json").write_text(json.dumps({**fields, "conversational": True}))
    with pytest.raises(UserError, match="trained on conversations"):
        distill(model=str(run), prompts=[str(tmp_path / "texts.txt")], **FLAGS)
    assert not (run / "distilled").exists()


def test_a_tag_that_is_a_word_of_the_vocabulary_leaves_the_base_acceptable(tmp_path):
    base = tiny.save(tmp_path / "base")
    policy = prepare_policy(tiny.model(), tiny.tokenizer(), TagScheme(("a", "is")))
    save_policy(policy, tmp_path / "run")
    assert load_policy(str(tmp_path / "run")).has_tokens_of(load_policy(base))


def test_the_student_of_a_run_that_was_moved_is_done(tmp_path):
    made = {"model": "runs/old", "teacher": "abc", "max_steps": 3}
    (tmp_path / "config.yaml").write_text(json.dumps(made))
    (tmp_path / "run.json").write_text('{"distilled_from": "runs/old"}')
    assert is_done(tmp_path, {**made, "model": "/home/me/new"})
    with pytest.raises(UserError, match="was distilled with teacher='abc', now it is 'xyz'"):
        is_done(tmp_path, {**made, "model": "/home/me/new", "teacher": "xyz"})
