"""What Trainer, accelerate and torch would refuse late is refused when the settings are made, in one line."""

import json
from dataclasses import fields

import pytest
import runs
import tiny
from transformers import TrainingArguments

from nlf import ALTConfig, ALTTrainer, config
from nlf.cli.arguments import inherited_knobs
from nlf.cli.main import main
from nlf.cli.train import prompt_rows
from nlf.errors import UserError
from nlf.training.arguments import check_measured

REFUSED = {
    "report_to": [("tensorbord", "tensorbord is not supported"), ("wandb", "its package is not installed")],
    "optim": [
        ("nope", "expected one of adamw_torch"),
        ("adamw_bnb_8bit", "bitsandbytes"),
        ("lomo", "checkpoints do not hold"),
    ],
    "optim_args": [("momentum", "'name=value'"), ("a=1", "has no effect on optim adamw_torch_fused")],
    "optim_target_modules": [(["x"], "has no effect on optim")],
    "seed": [(-1, "0 or more"), (2**32, "below 2**32")],
    "per_device_train_batch_size": [(0, "above 0")],
    "gradient_accumulation_steps": [(0, "above 0")],
    "num_train_epochs": [(float("inf"), "finite"), (0, "whole number"), (1.5, "whole number")],
    "max_steps": [(0, "-1"), (-2, "-1")],
    "lr_scheduler_type": [
        ("cosin", "did you mean 'cosine'"),
        ("cosine_with_min_lr", "min_lr"),
        ("warmup_stable_decay", "num_decay_steps"),
    ],
    "lr_scheduler_kwargs": [
        ({"foo": 1}, "unexpected keyword argument 'foo'"),
        ("{broken", "names and values"),
        ({"num_cycles": "two"}, "could not convert"),
    ],
    "warmup_steps": [(-1, "whole number of steps"), (1.5, "a share of all steps")],
    "logging_steps": [(-1, "whole number"), (2.5, "whole number"), (0, "whole number of steps")],
    "save_steps": [(0, "whole number of steps")],
    "eval_strategy": [("sometimes", "no, steps, epoch")],
    "save_total_limit": [(0, "above 0")],
    "adam_beta1": [(1.0, "below 1")],
    "neftune_noise_alpha": [(-1.0, "0 or more")],
    "accelerator_config": [("nope.json", "a JSON file"), ("{broken", "names and values")],
    "fp16": [(True, "fp16 needs a GPU")],
    "tf32": [(True, "--tf32 requires")],
    "deepspeed": [("ds.json", "pip install deepspeed")],
    "fsdp": [(5, "str | null"), ("full_shred", "full_shred")],
    "ddp_backend": [("x", "expected one of nccl"), ("gloo", "several processes")],
    "push_to_hub": [(True, "needs a token")],
    "use_liger_kernel": [(True, "liger's fused loss")],
    "liger_kernel_config": [({"rope": False}, "does not use liger")],
    "log_level": [("loud", "expected one of")],
    "dataloader_multiprocessing_context": [("fork", "dataloader_num_workers")],
    "activation_checkpointing_kwargs": [({"use_reentrant": False}, "without activation_checkpointing")],
    "output_dir": [("", "path of a folder")],
    "torch_compile_backend": [("x", "expected one of")],
}


@pytest.mark.parametrize(("name", "value", "words"), [(n, *case) for n, cases in REFUSED.items() for case in cases])
def test_what_trainer_refuses_late_is_refused_early(tmp_path, monkeypatch, name, value, words):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr("nlf.training.hub.get_token", lambda: None)
    with pytest.raises(UserError) as caught:
        ALTConfig(**{"output_dir": str(tmp_path), "use_cpu": True, "contrast_coef": 1, name: value})
    assert name in str(caught.value) and words in str(caught.value) and "\n" not in str(caught.value)


def test_arguments_that_work_still_work(tmp_path):
    for values in (
        {"report_to": "tensorboard"},
        {"report_to": "all"},
        {"optim": "sgd", "optim_args": "momentum=0.9"},
        {"optim": "adafactor"},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": '{"min_lr": 1e-5}'},
        {"warmup_steps": 0.1, "logging_steps": 0.5},
        {"max_steps": 3},
        {"bf16": True},
        {"tf32": False},
        {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": False}},
        {"eval_strategy": "steps", "eval_steps": 0},
        {"learning_rate": "1e-4"},
        {"train_sampling_strategy": "random"},
    ):
        ALTConfig(output_dir=str(tmp_path), use_cpu=True, **values)


OTHER = {bool: lambda old: not old, int: lambda old: old + 1, float: lambda old: old + 0.5, str: lambda old: "other"}
OTHERS = {
    **{
        "label_names": ["x"],
        "eval_accumulation_steps": 2,
        "include_for_metrics": ["loss"],
        "data_seed": 7,
        "debug": "foo",
    },
    **{"dataloader_multiprocessing_context": "spawn", "liger_kernel_config": {"rope": False}},
    **{"train_sampling_strategy": "group_by_length", "include_num_input_tokens_seen": "all"},
    **{"parallelism_config": "x", "resume_from_checkpoint": "x"},
}


@pytest.mark.parametrize("name", config.FIXED)
def test_an_argument_that_does_nothing_is_refused_and_its_default_is_not(tmp_path, name):
    default = getattr(ALTConfig(output_dir=str(tmp_path), use_cpu=True), name)
    assert default in config.FIXED[name].values
    other = OTHERS[name] if name in OTHERS else OTHER[type(default)](default)
    with pytest.raises(UserError, match=f"^{name} .* is not a setting of training: .*leave {name} out$"):
        ALTConfig(output_dir=str(tmp_path), use_cpu=True, **{name: other})


def test_tables_name_arguments_of_transformers():
    real = {f.name for f in fields(TrainingArguments)}
    for table in (config.FIXED, config.TRAINING_RULES, config.TRAINING_TYPES, config.TRAINING_DEFAULTS):
        assert set(table) <= real and set(table) <= set(inherited_knobs())


def test_the_best_model_is_the_one_of_the_best_reward(tmp_path):
    trainer = runs.make(tmp_path / "run", load_best_model_at_end=True)
    assert (trainer.args.metric_for_best_model, trainer.args.greater_is_better) == ("eval_reward", True)
    trainer.train()
    found = [line["eval_reward"] for line in runs.lines(tmp_path / "run") if "eval_reward" in line]
    assert trainer.state.best_metric == max(found)
    assert runs.same(runs.weights(tmp_path / "run"), runs.weights(trainer.state.best_model_checkpoint))


def test_the_direction_of_a_metric_is_its_own():
    args = lambda **values: ALTConfig(use_cpu=True, **values)  # noqa: E731
    assert args(metric_for_best_model="perplexity").greater_is_better is False
    assert args(metric_for_best_model="eval_dist-2").greater_is_better is True
    assert args(lr_scheduler_type="reduce_lr_on_plateau").lr_scheduler_kwargs == {"mode": "max"}
    with pytest.raises(UserError, match="perplexity is better if lower"):
        args(metric_for_best_model="perplexity", greater_is_better=True)
    with pytest.raises(UserError, match="give greater_is_better"):
        args(metric_for_best_model="kl")
    for values in ({"load_best_model_at_end": True, "save_strategy": "no"}, {"save_strategy": "best"}):
        with pytest.raises(UserError, match="needs evaluations"):
            args(eval_strategy="no", **values)
    with pytest.raises(UserError, match="save and eval strategy to match"):
        args(load_best_model_at_end=True, save_strategy="steps")


def test_sharding_by_one_process_is_refused_before_sampling(tmp_path):
    for value in (True, "full_shard"):
        with pytest.raises(UserError, match="fsdp needs several processes"):
            runs.make(tmp_path / "run", fsdp=value)


def test_an_unknown_metric_is_refused_before_sampling(tmp_path):
    with pytest.raises(UserError, match="'perplexiti': did you mean 'perplexity'"):
        runs.make(tmp_path / "run", metric_for_best_model="perplexiti", greater_is_better=True)
    with pytest.raises(UserError, match="training measures reward"):
        runs.make(tmp_path / "run", metric_for_best_model="toxicity")


def test_a_metric_that_no_evaluation_gives_is_one_line(tmp_path):
    """A scorer's attributes are known after the first evaluation only."""
    args = runs.settings(tmp_path, metric_for_best_model="insolt", greater_is_better=False)
    with pytest.raises(
        UserError, match=r"metric_for_best_model 'insolt': did you mean 'insult'\? the evaluation gave"
    ):
        check_measured(args, {"eval_reward": 0.5, "eval_insult": 0.1}, "eval")
    args.metric_for_best_model = "eval_insult"
    check_measured(args, {"eval_reward": 0.5, "eval_insult": 0.1}, "eval")


def test_evaluations_without_prompts_are_refused(tmp_path):
    for values in ({"eval_on_start": True}, {"load_best_model_at_end": True}):
        args = runs.settings(tmp_path / "run", **values)
        with pytest.raises(UserError, match="eval_dataset"):
            ALTTrainer(tiny.model(), tiny.vowels, args, train_dataset=tiny.PROMPTS, processing_class=tiny.tokenizer())


def test_weights_of_rewards_that_the_trainer_gets_are_compared_with_those(tmp_path):
    def words(completions, **kwargs):
        return [float(len(text.split())) for text in completions]

    trainer = runs.make(tmp_path / "run", reward=[tiny.vowels, words], reward_weights=[1.0, 0.5])
    assert trainer.args.reward_funcs == ["tiny:vowels", "python:words"]
    with pytest.raises(UserError, match="one weight for each"):
        runs.make(tmp_path / "run", reward=[tiny.vowels], reward_weights=[1.0, 0.5])


def flags(tmp_path, **values) -> list[str]:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in tiny.PROMPTS), encoding="utf-8")
    settings = {
        **{"model_name_or_path": tiny.save(tmp_path / "model"), "dataset": prompts, "reward_funcs": "tiny:vowels"},
        **{"output_dir": tmp_path / "run", "num_train_epochs": 1, "steps_per_iteration": 1, "use_cpu": "true"},
        **{"per_device_train_batch_size": 4, "prompts_per_iteration": 4, "max_completion_length": 4},
        **{"disable_tqdm": "true"},
    }
    return [word for name, value in (settings | values).items() for word in (f"--{name}", str(value))]


def chats(tmp_path):
    path = tmp_path / "chats.jsonl"
    rows = [{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in tiny.PROMPTS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_evaluation_prompts_are_left_alone_where_nothing_is_evaluated(tmp_path):
    source = str(chats(tmp_path))
    for eval_source in ("nowhere.jsonl", "embedded"):
        options = config.DataOptions(dataset_name=source, eval_dataset=eval_source)
        rows, eval_rows = prompt_rows(options, evaluates=False, distills=False)
        assert len(rows) == len(tiny.PROMPTS) and eval_rows is None
    assert ALTConfig(use_cpu=True, eval_strategy="no").evaluates is False
    assert ALTConfig(use_cpu=True, eval_strategy="no", eval_on_start=True).evaluates is True


def test_a_trainer_that_does_not_evaluate_does_not_check_evaluation_prompts(tmp_path):
    other = [{"prompt": [{"role": "user", "content": "hello"}]}, {"prompt": [{"role": "user", "content": "a " * 500}]}]

    def make(**values):
        args = runs.settings(tmp_path / "run", **values)
        return ALTTrainer(
            tiny.model(), tiny.vowels, args, train_dataset=tiny.PROMPTS, eval_dataset=other,
            processing_class=tiny.tokenizer(),
        )  # fmt: skip

    assert make(eval_strategy="no").inputs.conversational is False
    with pytest.raises(UserError, match="some are messages"):
        make()


def test_evaluation_prompts_of_another_kind_are_named(tmp_path, capsys):
    source = chats(tmp_path)
    assert main(["train", *flags(tmp_path, eval_dataset=source)]) == 2
    words = capsys.readouterr().err
    assert "prompts.jsonl holds text, and eval_dataset" in words and f"{source} holds messages" in words


def test_distillation_needs_evaluation_prompts_and_says_so_before_training(tmp_path, capsys):
    argv = flags(tmp_path, eval_dataset="nowhere.jsonl", eval_strategy="no", distill="true")
    assert main(["train", *argv]) == 2
    assert "nowhere.jsonl: no such file" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_two_tags_alone_train(tmp_path, capsys):
    argv = [*flags(tmp_path, eval_strategy="no", eval_dataset="nowhere.jsonl"), "--tags", "good", "bad"]
    assert main(["train", *argv]) == 0, capsys.readouterr().err


def test_mistakes_in_flags_leave_no_folder_behind(tmp_path, capsys):
    for name, value in (("report_to", "wandb"), ("optim", "lomo"), ("seed", "-1"), ("label_smoothing_factor", ".9")):
        assert main(["train", *flags(tmp_path, **{name: value})]) == 2
        err = capsys.readouterr().err
        assert name in err and "Traceback" not in err and not (tmp_path / "run").exists()
    recipe = tmp_path / "r.yaml"
    recipe.write_text("gradient_accumulation_steps: 0\n", encoding="utf-8")
    assert main(["train", *flags(tmp_path), "--config", str(recipe)]) == 2
    assert "gradient_accumulation_steps: 0 where a number above 0" in capsys.readouterr().err
