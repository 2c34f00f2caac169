"""Runs on conversations, from the prompts to the commands: where feedback goes, started answers, lengths, cut completions."""

import json
from types import SimpleNamespace

import chat_templates
import numpy as np
import pytest
import tiny
from runs import settings

from nlf.cli.main import main
from nlf.data.generations import read
from nlf.data.prompts import as_prompts, kind_of, load_prompts
from nlf.data.run_folder import run_settings
from nlf.errors import UserError
from nlf.method.tags import TagScheme
from nlf.models.policy import load_policy
from nlf.training.distill import distill
from nlf.training.evaluation import cut_lines
from nlf.training.trainer import ALTTrainer

USER = [{"role": "user", "content": "the weather"}]
TALK = [*USER, {"role": "assistant", "content": "calm"}, {"role": "user", "content": "and the river"}]
STARTED = [*USER, {"role": "assistant", "content": "It is"}]
PROMPTS = [{"prompt": prompt} for prompt in (USER, TALK, STARTED, [{"role": "user", "content": "a quarrel"}])]


def letters(prompts, completions, **kwargs):
    """Rewards by the text of messages."""
    assert all(len(c) == 1 and c[0]["role"] == "assistant" for c in completions)
    return [float(len(c[0]["content"])) for c in completions]


def chat_trainer(folder, template=chat_templates.GEMMA, prompts=PROMPTS, **changes) -> ALTTrainer:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    options = {name: changes.pop(name) for name in ("max_prompt_length",) if name in changes}
    values = {"num_train_epochs": 1, "prompts_per_iteration": 4, "tags": [*TagScheme().tags], **changes}
    return ALTTrainer(
        tiny.any_model("llama", max_position_embeddings=512), letters, settings(folder, **values),
        prompts, processing_class=tokenizer, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on conversations whose template refuses a system role, and whose tokenizer has other variables."""
    folder = tmp_path_factory.mktemp("chat") / "run"
    template = "{% if enable_thinking is defined and not enable_thinking %}[quiet]{% endif %}" + chat_templates.GEMMA
    start = folder.parent / "start"
    model, tokenizer = tiny.any_model("llama", max_position_embeddings=512), tiny.tokenizer()
    tokenizer.chat_template = template
    model.save_pretrained(start)
    tokenizer.save_pretrained(start)
    (folder.parent / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    assert main(
        [
            *("train", "--model_name_or_path", str(start), "--dataset", str(folder.parent / "talks.jsonl")),
            *("--eval_strategy", "no", "--reward_funcs", "length", "--output_dir", str(folder), "--use_cpu", "true"),
            *("--num_train_epochs", "1", "--steps_per_iteration", "1", "--prompts_per_iteration", "4"),
            *("--per_device_train_batch_size", "4", "--num_generations", "2", "--max_completion_length", "6"),
            *("--chat_template_kwargs", '{"enable_thinking": false}'),
        ]
    ) == 0  # fmt: skip
    return folder


def test_feedback_stands_in_the_first_user_message_where_the_template_has_no_system_role(tmp_path):
    trainer = chat_trainer(tmp_path / "run")
    trainer.train()
    example, tokenizer = trainer.train_dataset[0], trainer.processing_class
    assert "<start_of_turn>user\n" in (read := tokenizer.decode(example.right)) and "Length" not in read
    assert any(f"<start_of_turn>user\n{tag}\n\n" in read for tag in TagScheme().tags)
    assert not any(tag in tokenizer.decode(example.prompt) for tag in TagScheme().tags)
    assert json.loads((tmp_path / "run/tags.json").read_text())["feedback_position"] == "user"
    card = (tmp_path / "run/README.md").read_text()
    assert "reads a tag at the head of the first user message" in card
    assert "'role': 'user', 'content': 'Lowest Toxicity\\n\\nWhat is" in card


def test_a_template_that_shows_no_words_is_refused_before_anything_is_sampled(tmp_path):
    with pytest.raises(UserError, match="prompt 1 .*the tag can be read nowhere"):
        chat_trainer(tmp_path / "run", chat_templates.FIXED)
    assert not (tmp_path / "run/rollouts").exists()


def test_the_position_and_the_variables_are_part_of_the_stamp(tmp_path):
    plain = chat_trainer(tmp_path / "a", chat_templates.QWEN_3, PROMPTS[:2])
    by_name = chat_trainer(tmp_path / "b", chat_templates.QWEN_3, PROMPTS[:2], feedback_position="system")
    quiet = chat_trainer(
        tmp_path / "c", chat_templates.QWEN_3, PROMPTS[:2], chat_template_kwargs={"enable_thinking": False}
    )
    user = chat_trainer(tmp_path / "d", chat_templates.QWEN_3, PROMPTS[:2], feedback_position="user")
    digests = [trainer.sampling_digest() for trainer in (plain, by_name, quiet, user)]
    assert digests[0] == digests[1] and len({*digests}) == 3
    text = quiet.processing_class.decode(quiet.encoder.prompt_ids(USER))
    assert text.endswith("<think>\n\n</think>\n\n")


def test_the_commands_read_what_training_read(run, tmp_path, capsys):
    teacher = load_policy(str(run))
    assert teacher.scheme.feedback_position == "user"
    prompt_ids = teacher.encoder().prompt_ids(USER)
    assert teacher.tokenizer.decode(prompt_ids).startswith("[quiet]")
    talks = str(run.parent / "talks.jsonl")
    words = [
        "sample",
        "--model",
        str(run),
        "--prompts",
        talks,
        "--output_dir",
        str(tmp_path / "s"),
        "--num_generations",
        "2",
    ]
    assert main(words) == 0
    lines = [*read(tmp_path / "s/generations.jsonl")]
    assert lines[0]["prompt_ids"] == prompt_ids
    assert lines[0]["settings"]["max_completion_length"] == 6  # the run's
    assert lines[0]["settings"]["chat_template_kwargs"] == {"enable_thinking": False}
    assert lines[0]["settings"]["feedback_position"] == "user"
    assert main([*words, "--chat_template_kwargs", '{"enable_thinking": true}']) == 2
    assert "sampled with chat_template_kwargs={'enable_thinking': False}" in capsys.readouterr().err
    assert main([*words, "--chat_template_kwargs", '{"enable_thinkin": true}']) == 2
    assert "did you mean 'enable_thinking'" in capsys.readouterr().err


def test_the_base_model_is_rendered_with_the_variables_of_the_run(run, tmp_path):
    flags = ["--prompts", str(run.parent / "talks.jsonl"), "--num_generations", "2", "--guidance_scales", "0"]
    flags += ["--reward_funcs", "length"]
    assert main(["evaluate", "--model", str(run), "--output_dir", str(tmp_path / "e"), *flags]) == 0
    files = {path.stem: [*read(path)] for path in (tmp_path / "e").glob("generations-*.jsonl")}
    start = load_policy(str(run)).tokenizer
    for lines in files.values():
        assert len(lines) == len(PROMPTS)
        assert all(start.decode(line["prompt_ids"]).startswith("[quiet]") for line in lines)
    assert {line["feedback"] for line in files["generations-base"]} == {None}


def test_a_student_keeps_the_variables(run, tmp_path):
    folder = distill(model=str(run), num_prompts=2, num_generations=2, max_steps=1, output_dir=str(tmp_path / "d"))
    student = load_policy(str(folder))
    assert student.tokenizer.decode(student.encoder().prompt_ids(USER)).startswith("[quiet]")


def test_the_report_shows_conversations(run):
    assert main(["report", str(run)]) == 0
    assert "the weather" in (run / "report.html").read_text()


def test_a_plain_run_of_conversations_needs_no_place_for_tags(tmp_path):
    chat_trainer(tmp_path / "run", chat_templates.FIXED.replace("{{ m['role'] }}", "{{ m['content'] }}"), plain="only",
                 contrast_coef=0.0, prompts=PROMPTS[:2]).train()  # fmt: skip
    assert (tmp_path / "run/plain/config.json").is_file()


def test_an_old_run_reads_its_tags_in_the_system_message(tmp_path):
    scheme = json.loads(TagScheme(separator=None, conversational=True).to_json())
    del scheme["feedback_position"]
    (tmp_path / "tags.json").write_text(json.dumps(scheme))
    assert TagScheme.load(tmp_path).feedback_position == "system"


def test_a_completion_continues_the_started_answer(run, tmp_path):
    rows = as_prompts([{"prompt": STARTED}])
    policy = load_policy(str(run))
    ids = policy.encoder().prompt_ids(rows[0]["prompt"])
    assert policy.tokenizer.decode(ids).endswith("<start_of_turn>model\nIt is")


# ---- lengths ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompts", "kind", "length"),
    [
        (PROMPTS, "conversations", 256),
        ([{"prompt": "the weather"}], "text", 64),
        (None, "the embedded prompts", 20),
        (load_prompts("embedded:sentiment-neutral"), "the embedded prompts", 20),
    ],
)
def test_the_default_length_follows_the_prompts(tmp_path, caplog, prompts, kind, length):
    args = settings(tmp_path / "run", max_completion_length=None)
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = tiny.CHAT_TEMPLATE
    model = tiny.any_model("llama", max_position_embeddings=512)
    reward = tiny.vowels if kind != "conversations" else letters
    trainer = ALTTrainer(model, reward, args, prompts, processing_class=tokenizer)
    assert args.max_completion_length == length and kind_of(trainer.inputs.prompts) == kind
    told = f"completions have at most {length} tokens, the default for {kind}"
    assert any(told in line for line in caplog.messages) == (length != 20)


def test_a_minimum_above_the_default_length_is_refused(tmp_path):
    args = settings(tmp_path / "run", max_completion_length=None, min_completion_length=65)
    with pytest.raises(UserError, match=r"min_completion_length \(65\) is above max_completion_length \(64\)"):
        ALTTrainer(tiny.model(), tiny.vowels, args, [{"prompt": "the weather"}], processing_class=tiny.tokenizer())


def test_a_run_of_before_goes_on_with_its_length(run, tmp_path):
    assert run_settings(run)["max_completion_length"] == 6
    assert settings(run, max_completion_length=None).max_completion_length == 6


def pool_of(lengths: list[int], ended: list[bool], iteration: int) -> SimpleNamespace:
    """What the warning reads of a pool."""
    columns = {"iteration": [iteration] * len(lengths), "ended": ended, "completion_lengths": lengths}
    return SimpleNamespace(**{name: np.array(values) for name, values in columns.items()})


@pytest.mark.parametrize(
    ("lengths", "ended", "share"),
    [
        ([8] * 10, [False, *[True] * 9], None),  # a tenth is not more than a tenth
        ([8] * 10, [False, False, *[True] * 8], "20%"),
        ([3] * 10, [False] * 10, None),  # they stopped for another reason
        ([8] * 4, [True] * 4, None),
    ],
)
def test_completions_without_an_end_are_told_with_their_share_and_the_flag(lengths, ended, share):
    lines = cut_lines(pool_of(lengths, ended, iteration=3), 3, 8)
    if share is None:
        assert lines == []
    else:
        assert len(lines) == 1 and f"iteration 3: {share} of the completions" in lines[0]
        assert "max_completion_length 8 without EOS" in lines[0] and "--max_completion_length" in lines[0]
    assert cut_lines(pool_of(lengths, ended, iteration=2), 3, 8) == []


def test_the_line_comes_once_an_iteration_and_not_for_the_embedded_prompts(tmp_path, caplog):
    chat_trainer(tmp_path / "run", num_train_epochs=2).train()
    told = [line for line in caplog.messages if "without EOS" in line]
    assert [line.split(":")[0] for line in told] == ["iteration 0", "iteration 1"]
    caplog.clear()
    prompts = load_prompts("embedded", limit=6)
    ALTTrainer(
        tiny.model(),
        tiny.vowels,
        settings(tmp_path / "other", num_train_epochs=1),
        prompts,
        processing_class=tiny.tokenizer(),
    ).train()
    assert not any("without EOS" in line for line in caplog.messages)
