"""The commands from Python do what the command line does."""

import pytest
import tiny

import nlf
from nlf.cli.main import main
from nlf.errors import UserError

SMALL = {
    **{"prompts_per_iteration": 4, "num_generations": 2, "max_completion_length": 4, "num_train_epochs": 1},
    **{"steps_per_iteration": 1, "per_device_train_batch_size": 4, "eval_strategy": "no", "use_cpu": True},
}


def words(capsys) -> dict[str, str]:
    """What `--dry_run` prints: names and figures."""
    lines = [line.split("  ", 1) for line in capsys.readouterr().out.splitlines()]
    return {name: figure.strip() for name, figure in lines}


def test_a_dry_run_is_the_command_s(capsys, inputs):
    model, prompts = inputs
    found = nlf.dry_run(model=model, dataset=prompts, eval_dataset=prompts, learning_rate="1e-4", max_eval_prompts=2)
    flags = ["--model_name_or_path", model, "--dataset_name", str(prompts), "--eval_dataset", str(prompts)]
    assert main(["train", "--dry_run", *flags, "--learning_rate", "1e-4", "--max_eval_prompts", "2"]) == 0
    assert words(capsys) == found


def test_train_evaluate_and_the_rest_from_python(inputs, tmp_path):
    model, prompts = inputs
    run = tmp_path / "run"
    trainer = nlf.train(
        model=model, dataset_name=prompts, eval_dataset=prompts, reward_funcs=[tiny.vowels], output_dir=run, plain="true",
        **SMALL,
    )  # fmt: skip
    assert trainer.run_dir == run and trainer.options["dataset_name"] == str(prompts)
    assert (run / "report.html").is_file() and (run / "plain" / "report.html").is_file()
    small = {"num_generations": 2, "max_completion_length": 4, "max_prompts": 2, "reward_funcs": ["local"]}
    found = nlf.evaluate(model_name_or_path=run, **small)
    assert [system["name"] for system in found["systems"]] == ["base", "best tag", "best tag, guidance 1", "plain"]
    sampled = {name: value for name, value in small.items() if name != "reward_funcs"}
    nlf.sample(model=run, output_dir=tmp_path / "out", prompts=[prompts], **sampled)
    assert "local" in nlf.score(path=tmp_path / "out", reward_funcs="local")
    assert "perplexity" in nlf.perplexity(path=tmp_path / "out", model_name_or_path=model)
    assert nlf.write_report([run], tmp_path / "page.html").is_file()


def test_a_run_is_distilled_from_python(inputs, tmp_path):
    """`distill: true` of a run, and the function by itself, which keeps the student that is there."""
    model, prompts = inputs
    run = tmp_path / "run"
    nlf.train(model=model, dataset=prompts, reward_funcs=["local"], output_dir=run, distill=True, **SMALL)
    assert (run / "distilled" / "config.json").is_file()
    assert nlf.distill(model_name_or_path=str(run)) == run / "distilled"


def test_mistakes_are_those_of_the_command_line(tmp_path):
    with pytest.raises(UserError, match="^unknown knob learning_rat; did you mean learning_rate"):
        nlf.train(learning_rat=1)
    with pytest.raises(UserError, match="^unknown knob guidance_scal; did you mean guidance_scales"):
        nlf.evaluate(guidance_scal=1)
    with pytest.raises(UserError, match="^--model is missing"):
        nlf.evaluate()
    with pytest.raises(UserError, match="^learning_rate: 'high' where float"):
        nlf.dry_run(learning_rate="high")
    with pytest.raises(UserError, match="^--output_dir is missing"):
        nlf.import_checkpoint(checkpoint=tmp_path / "x.pth")
    with pytest.raises(UserError, match="no shipped recipe"):
        nlf.train("nowhere")
