"""The trainer on a tiny model: one call runs all iterations, and a stop anywhere changes no result."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
import tiny
import torch
from runs import killed, lines, make, on_call, same, settings, weights

from nlf.data.checkpoints import MARKER, clear_checkpoint, numbered
from nlf.data.pool import Pool
from nlf.errors import UserError
from nlf.models.policy import load_policy
from nlf.models.reading import unwrapped
from nlf.training.trainer import ALTTrainer


def test_fsdp_can_be_switched_on_by_a_flag(tmp_path):
    """TrainingArguments reads the text 'true' as the name of a sharding strategy, and refuses it."""
    assert settings(tmp_path, fsdp="true").fsdp is True
    assert not settings(tmp_path, fsdp="false").fsdp
    assert not settings(tmp_path).fsdp


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The folder of a run that nobody stopped."""
    folder = tmp_path_factory.mktemp("unbroken")
    make(folder).train()
    return folder


def test_a_run_leaves_everything_behind(unbroken):
    names = {p.name for p in unbroken.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "rollouts", "model.safetensors", "tags.json", "README.md"} <= names
    assert {"checkpoint-3", "checkpoint-6"} <= names
    assert not list(unbroken.glob("**/training_args.bin")) and not list(unbroken.glob("*.bin"))
    assert not list(unbroken.glob("rollouts/*/samples-*"))
    parts = sorted(p.relative_to(unbroken).as_posix() for p in unbroken.glob("rollouts/*/*"))
    assert parts == [f"rollouts/iteration-{i:04d}/part-{p:05d}.parquet" for i in (0, 1) for p in (0, 1, 2)]


def test_what_is_logged(unbroken):
    logged = lines(unbroken)
    steps = [row for row in logged if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]
    assert {"nll", "kl", "entropy", "contrast", "tag_margin", "tag_accuracy", "grad_norm", "beta"} <= steps[0].keys()
    for row in steps:  # without NLL and entropy bonus; the KL in the log is that of one of the two branches
        assert row["loss"] == pytest.approx(row["contrast"] + 2 * row["beta"] * row["kl"], rel=1e-5)
    assert 0 < steps[0]["kl"] < steps[-1]["kl"]  # at first only the tag tells the policy from the reference
    pools = [row for row in logged if "pool/size" in row]
    assert [row["pool/size"] for row in pools] == [20, 40]
    evaluations = [row for row in logged if "eval_reward" in row]
    assert [row["step"] for row in evaluations] == [3, 6]
    wanted = {"eval_perplexity", "eval_dist-2", "eval_kl", "eval_entropy", "eval_completion_length"}
    assert wanted <= evaluations[0].keys()


def test_the_loss_is_the_objective_at_the_start(tmp_path):
    """With a contrast alone, the loss of the first step is the logged contrast."""
    trainer = make(tmp_path, nll_coef=0.0, beta=0.0, num_train_epochs=1, steps_per_iteration=1)
    trainer.train()
    first = next(row for row in lines(tmp_path) if "loss" in row)
    assert first["loss"] == pytest.approx(first["contrast"], rel=1e-5)


def test_micro_batches_do_not_change_the_run(tmp_path, unbroken):
    make(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4).train()
    for one, other in zip(lines(unbroken), lines(tmp_path), strict=True):
        for name in ("loss", "grad_norm", "kl", "contrast"):
            if name in one:
                assert other[name] == pytest.approx(one[name], rel=2e-4), name


def untimed(folder) -> list[dict]:
    """The logged lines without Trainer's figures about the last process: its seconds and its mean loss."""
    return [{name: value for name, value in row.items() if not name.startswith("train_")} for row in lines(folder)]


def killed_run(folder, arm) -> None:
    """Run in a child process, which `arm` prepares to be killed by SIGKILL; no handler runs."""

    def child():
        torch.set_num_threads(1)
        trainer = make(folder)
        arm(trainer)
        trainer.train()

    killed(child)


def while_sampling(trainer):
    import nlf.training.collector

    on_call(nlf.training.collector, "write_part", 2)  # iteration 0, second part


def while_sampling_later(trainer):
    import nlf.training.collector

    on_call(nlf.training.collector, "write_part", 8)  # iteration 1


def while_scoring(trainer):
    import nlf.training.collector

    on_call(nlf.training.collector, "score_table", 5)


def while_writing_a_checkpoint(trainer):
    on_call(trainer, "_save_rng_state", 2)  # weights and optimizer of checkpoint-6 are written, its marker is not


def in_a_step(trainer):
    on_call(trainer, "compute_loss", 5)


def in_the_very_first_step(trainer):
    on_call(trainer, "compute_loss", 1)


def in_the_first_step_of_an_iteration(trainer):
    on_call(trainer, "compute_loss", 4)


def while_saving_the_model(trainer):
    on_call(trainer, "finish", 1)


KILLED = [
    *(while_sampling, while_sampling_later, while_scoring, while_writing_a_checkpoint, in_a_step),
    *(in_the_very_first_step, in_the_first_step_of_an_iteration, while_saving_the_model),
]


@pytest.mark.parametrize("arm", KILLED)
def test_killed_and_resumed_equals_unbroken(tmp_path, unbroken, arm):
    torch.set_num_threads(1)
    killed_run(tmp_path, arm)
    assert not (tmp_path / "model.safetensors").exists()
    written = {p: p.stat().st_mtime_ns for p in tmp_path.glob("rollouts/*/part-*")}
    make(tmp_path).train(resume_from_checkpoint=True)
    assert same(weights(tmp_path), weights(unbroken))
    assert all(p.stat().st_mtime_ns == then for p, then in written.items()), "a finished part was done again"
    assert untimed(tmp_path) == untimed(unbroken)


def test_resuming_from_the_middle_of_an_iteration(tmp_path, unbroken):
    changed = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": None}
    make(tmp_path, eval_strategy="steps", eval_steps=3, **changed).train()
    assert same(weights(tmp_path), weights(unbroken))
    for name in ("checkpoint-5", "checkpoint-6"):
        clear_checkpoint(tmp_path / name)
    (tmp_path / "model.safetensors").unlink()
    make(tmp_path, eval_strategy="steps", eval_steps=3, **changed).train(resume_from_checkpoint=True)
    assert same(weights(tmp_path), weights(unbroken))


def test_more_iterations_may_follow(tmp_path, unbroken):
    make(tmp_path, num_train_epochs=1).train()
    make(tmp_path, num_train_epochs=2).train(resume_from_checkpoint=True)
    assert same(weights(tmp_path), weights(unbroken))


def test_the_evaluated_reward_of_several_is_their_weighted_sum(tmp_path):
    def ones(completions, **kwargs):
        return [1.0] * len(completions)

    names = ["tiny:vowels", "ones"]
    trainer = make(tmp_path, reward=[tiny.vowels, ones], reward_funcs=names, reward_weights=[2.0, 0.5])
    found = trainer.evaluate()
    assert found["eval_reward"] == pytest.approx(2 * found["eval_reward/vowels"] + 0.5 * found["eval_reward/ones"])


def test_a_folder_with_a_run_is_refused(unbroken):
    with pytest.raises(UserError, match="already holds a run; add --resume_from_checkpoint true"):
        make(unbroken).train()


def test_changed_settings_are_refused_on_resume(unbroken):
    with pytest.raises(UserError, match=r"was started with learning_rate=0.01, now it is 0.02"):
        make(unbroken, learning_rate=2e-2).train(resume_from_checkpoint=True)


def test_sigterm_saves_and_exits(tmp_path, unbroken):
    trainer = make(tmp_path)
    original = trainer.compute_loss
    calls = []

    def counted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **kwargs)

    trainer.compute_loss = counted
    with pytest.raises(SystemExit) as stop:
        trainer.train()
    assert stop.value.code == 143
    assert numbered(tmp_path)[0][1].name == "checkpoint-4" and (tmp_path / "checkpoint-4" / MARKER).is_file()
    make(tmp_path).train(resume_from_checkpoint=True)
    assert same(weights(tmp_path), weights(unbroken))


def test_trainer_leaves_the_global_random_state_alone_while_sampling(tmp_path):
    trainer = make(tmp_path, num_train_epochs=1, steps_per_iteration=1)
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    trainer.refresh()
    trainer.evaluate()
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt_neox"])
def test_other_architectures(tmp_path, architecture):
    make(tmp_path, architecture, num_train_epochs=1, steps_per_iteration=2).train()
    from transformers import pipeline

    text = "Lowest Toxicity<|separator|>the weather"
    written = pipeline("text-generation", model=str(tmp_path))(text, max_new_tokens=3, do_sample=False)
    assert len(written[0]["generated_text"]) > 0


def test_lora_has_no_second_copy_and_resumes(tmp_path):
    from peft import LoraConfig

    def lora(folder, **changes):
        config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
        return make(folder, "llama", peft_config=config, **changes)

    trainer = lora(tmp_path / "whole")
    assert trainer.policy.reference_model is None
    trainer.train()
    lora(tmp_path / "half", num_train_epochs=1).train()
    lora(tmp_path / "half").train(resume_from_checkpoint=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "half"))


@pytest.mark.parametrize("compile", [True, False])
def test_the_trainers_own_sampler_is_compiled_where_asked_for(compile, tmp_path):
    trainer = make(tmp_path, sampler_compile=compile)
    with trainer.run_policy.open_sampler(trainer.policy) as sampler:
        assert sampler.compile is compile


def test_a_reference_elsewhere_trains_the_same(tmp_path, unbroken):
    trainer = make(tmp_path, reference_device="cpu")
    trainer.train()
    assert same(weights(unbroken), weights(tmp_path))


@pytest.mark.parametrize("device", ["cuda:77", "gpu", "meta"])
def test_a_reference_on_no_device_is_refused(device, tmp_path):
    with pytest.raises(UserError, match=f"reference_device '{device}': expected cpu, or a device of this machine"):
        make(tmp_path, reference_device=device)


def test_an_adapter_has_no_reference_to_move(tmp_path):
    from peft import LoraConfig

    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    with pytest.raises(
        UserError, match="reference_device cpu: .* it is the policy with its adapter off; leave it out"
    ):
        make(tmp_path, "llama", peft_config=config, reference_device="cpu")


def test_compiled_training_is_the_same_and_resumes(tmp_path, unbroken):
    """All groups share one graph, whichever comes first. The plain model is sampled, digested and saved."""

    def compiled(folder, **changes):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        trainer = make(folder, torch_compile=True, torch_compile_backend="eager", **changes)
        trainer.train(resume_from_checkpoint=folder.is_dir() and any(folder.iterdir()))
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
        assert unwrapped(trainer.model_wrapped) is trainer.policy.model is not trainer.model_wrapped
        assert trainer.logits_plan.bare
        return trainer

    compiled(tmp_path / "whole")
    first, other = ([row for row in lines(run) if "loss" in row][:3] for run in (tmp_path / "whole", unbroken))
    for name in ("loss", "grad_norm", "kl", "tag_margin"):
        assert [row[name] for row in first] == pytest.approx([row[name] for row in other], rel=1e-4), name
    compiled(tmp_path / "half", num_train_epochs=1)
    compiled(tmp_path / "half")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "half"))
    assert weights(tmp_path / "whole").keys() == weights(unbroken).keys()


def test_compilers_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(UserError, match="torch_compile_backend 'inducter': did you mean 'inductor'"):
        settings(tmp_path, torch_compile_backend="inducter")
    with pytest.raises(UserError, match="torch_compile_mode 'fast': expected one of default, .*max-autotune"):
        settings(tmp_path, torch_compile=True, torch_compile_mode="fast")


def test_published_objective_draws_and_rule(tmp_path):
    make(
        tmp_path,
        nll_coef=1.0,
        contrast_coef=0.0,
        beta=0.05,
        entropy_coef=0.06,
        quantile_weights=None,
        quantile_rule="published",
        max_grad_norm=0.0,
        adaptive_kl=True,
    ).train()
    steps = [row for row in lines(tmp_path) if "loss" in row]
    for row in steps[:1]:
        assert row["loss"] == pytest.approx(row["nll"] + 0.05 * row["kl"] - 0.06 * row["entropy"], rel=1e-4)
    assert "tag_margin" not in steps[0]
    assert steps[-1]["beta"] != 0.05  # the controller moved it


def test_quark_tags_are_tokens(tmp_path):
    trainer = make(
        tmp_path, tag_tokens=True, tags=[f"<q{i}>" for i in range(5)], tag_template="{feedback}{prompt}",
        separator=None, kl_direction="reverse", num_train_epochs=1,
    )  # fmt: skip
    assert len(trainer.policy.added_token_ids) == 5
    trainer.train()


def test_conversations_put_feedback_into_the_system_message(tmp_path):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = tiny.CHAT_TEMPLATE
    prompts = [{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in tiny.PROMPTS]
    seen = []

    def reward(prompts, completions, completion_ids, **kwargs):
        seen.extend(completions)
        return [float(len(c[0]["content"])) for c in completions]

    trainer = ALTTrainer(
        tiny.model(), reward_funcs=reward, args=settings(tmp_path, num_train_epochs=1), train_dataset=prompts,
        processing_class=tokenizer,
    )  # fmt: skip
    assert trainer.policy.added_token_ids == ()
    trainer.train()
    assert seen[0][0]["role"] == "assistant"
    example = trainer.train_dataset[0]
    assert "<system>" in tokenizer.decode(example.right) and "<system>" not in tokenizer.decode(example.prompt)


def test_a_reward_that_returns_nan_is_named(tmp_path):
    def broken(prompts, completions, completion_ids, **kwargs):
        return [float("nan")] * len(completions)

    with pytest.raises(UserError, match="broken"):
        make(tmp_path, reward=broken).train()
    assert not list(tmp_path.glob("rollouts/*/part-*"))


def test_a_reward_may_abstain(tmp_path):
    def picky(prompts, completions, completion_ids, **kwargs):
        return [None if i % 2 else 0.5 for i, _ in enumerate(completions)]

    make(tmp_path, reward=picky, num_train_epochs=1).train()
    assert next(row for row in lines(tmp_path) if "pool/size" in row)["pool/num_unscored"] == 10


class OneLanguage:
    """Reads a text that begins with an ASCII letter; another cannot be scored, as if of another language."""

    name, version, none_is_worst = "one", 1, True

    def __call__(self, completions, **kwargs):
        return [len(text) / 100 if text[:1].isascii() else None for text in completions]


def test_a_text_that_cannot_be_scored_is_trained_on_as_the_worst_and_resumes(tmp_path, caplog):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    trainer = make(whole, reward=OneLanguage())
    trainer.train()
    pool = Pool.load(whole, 1)
    none = np.isnan(pool.rewards)
    assert 0.02 < none.mean() < 1  # the rollouts keep what the scorer said
    assert (trainer.feedback.quantiles(pool)[none] == trainer.scheme.num_quantiles - 1).all()
    logged = [row for row in lines(whole) if "pool/size" in row]
    first = np.isnan(pool.rewards[pool.iteration == 0])
    assert logged[0]["unscored_fraction/one"] == pytest.approx(first.mean())
    told = [line for line in caplog.messages if "they count as the worst reward so far" in line]
    assert told[0].startswith(f"warning: one could not score {first.sum()} of {len(first)} completions (")
    assert len(told) == 2 and any("evaluation: one@1 could not score" in line for line in caplog.messages)
    evaluated = next(row for row in lines(whole) if "eval_reward" in row)
    assert evaluated["eval_unscored_fraction"] == evaluated["eval_unscored/one@1"] / 6
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "checkpoint-6")
    make(resumed, reward=OneLanguage()).train(resume_from_checkpoint=True)
    assert same(weights(resumed), weights(whole))


def test_a_run_whose_texts_cannot_be_scored_at_all_says_so(tmp_path):
    class Mute(OneLanguage):
        def __call__(self, completions, **kwargs):
            return [None for _ in completions]

    with pytest.raises(UserError, match="no completion has a reward, so none can be trained on"):
        make(tmp_path, reward=Mute()).train()


def test_a_prompt_over_the_context_is_refused(tmp_path):
    with pytest.raises(UserError, match="--max_prompt_length"):
        make(tmp_path, prompts=[{"prompt": "the river " * 60}])


def test_the_best_iteration_is_kept_and_stopping_early_works(tmp_path):
    from transformers import EarlyStoppingCallback

    best = {"load_best_model_at_end": True, "metric_for_best_model": "reward", "greater_is_better": True}
    trainer = make(tmp_path, num_train_epochs=5, learning_rate=0.0, **best)
    trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=1))
    trainer.train()
    # Without a learning rate the second evaluation equals the first, so the run ends there.
    assert [row["step"] for row in lines(tmp_path) if "eval_reward" in row] == [3, 6]
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-3")
    assert same(weights(tmp_path), weights(tmp_path / "checkpoint-3"))


def test_trackers_see_our_metrics(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    make(tmp_path / "run", report_to="tensorboard", num_train_epochs=1).train()
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert {"train/tag_margin", "train/kl", "eval/reward", "eval/perplexity"} <= set(events.Tags()["scalars"])


def test_bf16_and_gradient_checkpointing(tmp_path):
    make(tmp_path, "llama", bf16=True, gradient_checkpointing=True, num_train_epochs=1).train()
    assert np.isfinite([row["loss"] for row in lines(tmp_path) if "loss" in row]).all()


def test_config_yaml_can_be_given_back(unbroken):
    from nlf.cli.arguments import read_recipe
    from nlf.cli.train import build, train_settings_knobs

    values = read_recipe(unbroken / "config.yaml", train_settings_knobs())
    args, _, _ = build({**values, "reward_funcs": ["local"]})
    assert args.learning_rate == 1e-2 and args.steps_per_iteration == 3 and args.tags[0] == "Maximum Vowels"


def test_a_reward_of_trl_sees_the_state_and_logs(tmp_path):
    """Functions get them by name or by **kwargs, in training and in evaluation; other functions are called without."""
    seen = []

    def curriculum(completions, trainer_state, log_metric, **kwargs):
        seen.append(trainer_state.global_step)
        log_metric("words", sum(len(text.split()) for text in completions) / len(completions))
        return [float(len(text)) for text in completions]

    def strict(prompts, completions, completion_ids):
        return [0.0] * len(completions)

    trainer = make(tmp_path, reward=[curriculum, strict], eval_strategy="epoch")
    trainer.train()
    assert set(seen) == {0, 3, 6}
    logged = [row["words"] for row in lines(tmp_path) if "pool/size" in row]
    assert len(logged) == 2 and all(value > 0 for value in logged)


def test_short_completions_leave_a_sentence_the_room_that_older_runs_left(tmp_path):
    """Older runs left room for 20 tokens of evaluation; the stamps of runs with judges hold the number."""
    limits = [
        make(
            tmp_path / str(length), max_completion_length=length, max_feedback_length=10_000
        ).encoder.max_feedback_length
        for length in (5, 20, 21)
    ]
    assert limits[0] == limits[1] == limits[2] + 1


def test_ids_that_the_reference_lacks_are_never_read(tmp_path):
    """A padding token without a row, and prompts that spell the separator."""
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    rows = [{"prompt": "what is <|separator|> for"}, {"prompt": "the [PAD] river"}, *tiny.PROMPTS]
    args = settings(tmp_path / "run", num_train_epochs=1, steps_per_iteration=2)
    trainer = ALTTrainer(tiny.model(), tiny.vowels, args, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    assert load_policy(str(tmp_path / "run")).added_token_ids == (301, 300)
    assert json.loads((tmp_path / "run/tags.json").read_text())["added_tokens"] == ["<|separator|>", "[PAD]"]
    assert json.loads((tmp_path / "run/tags.json").read_text())["conversational"] is False


def test_evaluation_prompts_of_another_kind_are_refused(tmp_path):
    trainer = make(tmp_path / "run")
    with pytest.raises(UserError, match="it is a conversation, and the model was trained on texts"):
        trainer.evaluate([{"prompt": [{"role": "user", "content": "hi"}]}])
