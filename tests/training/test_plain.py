"""The plain run: its folder, the stage after a run with tags, kills in either stage, refused settings, its evaluation."""

import json
import logging
import shutil

import pytest
import tiny
import yaml
from runs import fork, lines, make, on_call, same, weights

from nlf.cli.dry_run import Counts, passes, prefix_calls
from nlf.cli.main import main
from nlf.config import TrainOptions
from nlf.data.run_folder import changed_settings, is_plain_run, model_folder, plain_folder
from nlf.errors import UserError
from nlf.training import stages
from nlf.training.config import ALTConfig
from nlf.training.trainer import ALTTrainer

CREDIT = {
    **{"credit_coef": 1.0, "contrast_coef": 0.0, "eval_strategy": "no"},
    **{"save_strategy": "steps", "save_steps": 1, "save_total_limit": None},
}


def start(folder, plain, **changes) -> ALTTrainer:
    return make(folder, reward="length", plain=plain, **CREDIT | changes)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The folder of a run with tags that was followed by a plain run."""
    folder = tmp_path_factory.mktemp("both") / "run"
    start(folder, True).train()
    return folder


@pytest.fixture(scope="module")
def only(tmp_path_factory):
    """The output_dir of a plain run alone."""
    folder = tmp_path_factory.mktemp("only") / "run"
    start(folder, "only").train()
    return folder


# ---- what is written ----------------------------------------------------------------------------------------------


def test_a_plain_run_is_a_run_folder_of_its_own(only):
    assert [path.name for path in only.iterdir()] == ["plain"]
    there = {path.name for path in (only / "plain").iterdir()}
    assert {"config.yaml", "run.json", "metrics.jsonl", "rollouts", "checkpoint-6", "model.safetensors"} <= there
    assert "tags.json" not in there and "tags.json" not in {p.name for p in (only / "plain/checkpoint-6").iterdir()}
    assert len(weights(only / "plain")["transformer.wte.weight"]) == len(tiny.tokenizer())  # no token was added
    assert not same(weights(only / "plain"), tiny.model().state_dict())


def test_a_plain_run_logs_nothing_of_tags(only):
    logged = {name for row in lines(only / "plain") for name in row}
    assert {"credit", "credit/size", "kl", "reward"} <= logged
    assert not [name for name in logged if "quantile" in name or "tag_" in name or "contrast" in name]


def test_a_plain_run_trains_the_sum_of_the_rewards_of_attributes(tmp_path):
    attributes = [{"name": n, "reward": "length", "tags": [f"Many {n}", f"Few {n}"]} for n in ("a", "b")]
    make(tmp_path, reward=["length", "length"], attributes=attributes, plain="only", eval_strategy="no").train()
    rows = [row for row in lines(tmp_path / "plain") if "iteration" in row]
    assert rows[0]["reward"] == pytest.approx(rows[0]["reward/length"] + rows[0]["reward/length_2"])
    assert (tmp_path / "plain/model.safetensors").is_file()


@pytest.mark.parametrize("plain", ["only", False])
def test_by_credit_only_a_reward_that_never_varies_is_told(tmp_path, caplog, plain):
    def flat(completions, **kwargs):
        return [0.5] * len(completions)

    def coarse(completions, **kwargs):
        return [float("e" in text) for text in completions]

    for reward, count in ((flat, 1), (coarse, 0)):
        caplog.clear()
        make(tmp_path / reward.__name__, reward=reward, plain=plain, steps_per_iteration=1, **CREDIT).train()
        assert caplog.text.count("so there is nothing to learn") == count
        assert "tags with few" not in caplog.text


def test_the_card_shows_a_bare_prompt(only):
    card = (only / "plain/README.md").read_text()
    assert "write('The weather in the mountains', do_sample=True" in card and "without a\ntag" in card
    assert "Training took 2 iterations of 3 steps, with 8 rollouts a step and the reward `length@1`." in card
    assert "credit 1.0, a KL budget of 0.1 nats a token" in card and "contrast" not in card


def test_a_plain_run_follows_the_run_with_tags_and_neither_changes_the_other(both, only, tmp_path):
    assert (both / "tags.json").is_file() and not (both / "plain/tags.json").exists()
    assert same(weights(both / "plain"), weights(only / "plain"))
    start(tmp_path / "tags", False).train()
    assert same(weights(both), weights(tmp_path / "tags"))


def test_both_stages_read_one_copy_of_the_reference(tmp_path, monkeypatch):
    train, seen = ALTTrainer._train, []

    def watched(self, *given):
        seen.append(self.policy.reference_model)
        return train(self, *given)

    monkeypatch.setattr(ALTTrainer, "_train", watched)
    start(tmp_path, True, num_train_epochs=1).train()
    assert len(seen) == 2 and seen[0] is seen[1]


def test_the_two_ways_to_a_plain_run_record_the_same_settings(both, only):
    found = [yaml.safe_load((folder / "plain/config.yaml").read_text()) for folder in (both, only)]
    assert not changed_settings(*found)
    assert found[0]["plain"] == "only" and found[0]["distill"] is False
    assert found[0]["dataset_name"] == str(both / "plain/train-prompts.jsonl")


def test_contrast_and_nll_train_tags_alone(only, tmp_path):
    start(tmp_path / "run", "only", contrast_coef=1.0, nll_coef=1.0).train()
    assert same(weights(tmp_path / "run/plain"), weights(only / "plain"))


def test_the_folder(tmp_path):
    assert plain_folder("runs/x") == plain_folder("runs/x/plain") and str(plain_folder("runs/x")) == "runs/x/plain"
    made = ALTConfig(output_dir=str(tmp_path / "run"), plain="only", credit_coef=1.0, use_cpu=True)
    again = ALTConfig(output_dir=made.output_dir, plain="only", credit_coef=1.0, use_cpu=True)
    assert made.output_dir == again.output_dir == str(tmp_path / "run/plain")


@pytest.mark.parametrize("given, read", [(True, "true"), (False, "false"), ("true", "true"), ("only", "only")])
def test_true_and_false_may_be_given_as_such(given, read):
    assert TrainOptions(plain=given, credit_coef=1.0).plain == read


# ---- kill and resume ----------------------------------------------------------------------------------------------


def killed(folder, step: int, plain="true") -> None:
    """Start a run in another process, which dies at the start of its optimizer step number `step`, over both stages."""

    def run():
        on_call(ALTTrainer, "compute_loss", step)
        start(folder, plain).train()

    process = fork.Process(target=run)
    process.start()
    process.join(120)
    assert process.exitcode == -9


@pytest.mark.parametrize("step", [3, 9, 11])
def test_a_killed_run_goes_on_in_its_stage_and_ends_with_the_same_bits(both, tmp_path, step):
    folder = tmp_path / "run"
    killed(folder, step)
    assert (folder / "tags.json").exists() == (step > 6)
    resumed = start(folder, "true")
    resumed.train(resume_from_checkpoint=True)
    assert same(weights(folder), weights(both)) and same(weights(folder / "plain"), weights(both / "plain"))
    assert resumed.started_at == min(step - 1, 6)  # a stage that has ended takes no step again


def test_a_killed_plain_run_ends_with_the_same_bits(only, tmp_path):
    killed(tmp_path / "run", 5, "only")
    start(tmp_path / "run", "only").train(resume_from_checkpoint=True)
    assert same(weights(tmp_path / "run/plain"), weights(only / "plain"))


def test_a_checkpoint_of_the_plain_run_resumes_the_plain_run(both, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(both, folder)
    trainer = start(folder, "true")
    checkpoint = str(folder / "plain/checkpoint-4")
    assert trainer.checkpoints_to_resume(checkpoint) == (True, checkpoint)
    assert trainer.checkpoints_to_resume(str(folder / "checkpoint-2")) == (str(folder / "checkpoint-2"), True)
    trainer.train(resume_from_checkpoint=checkpoint)
    assert trainer.started_at == 6 and same(weights(folder / "plain"), weights(both / "plain"))


def test_a_plain_run_can_follow_later(both, tmp_path):
    folder = tmp_path / "run"
    start(folder, False).train()
    start(folder, "true").train(resume_from_checkpoint=True)
    assert same(weights(folder / "plain"), weights(both / "plain"))


def test_settings_of_tags_change_nothing_of_a_plain_run():
    old = {"tags": None, "quantile_weights": [1, 2], "plain": "only", "beta": 1.0}
    new = {"tags": ["a", "b"], "quantile_weights": None, "plain": "only", "beta": 2.0}
    assert changed_settings(old, new) == [("beta", 1.0, 2.0)]
    assert changed_settings({"plain": "false"}, {"plain": "true"}) == []
    assert changed_settings({"plain": "true"}, {"plain": "only"}) == [("plain", "true", "only")]


# ---- what cannot be -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, told",
    [
        (
            {"plain": "only", "credit_coef": 0},
            "plain only: a plain model has no tags, so it is trained by credit alone, and credit_coef",
        ),
        ({"plain": "true", "contrast_coef": 1}, "credit_coef is 0; set credit_coef 1, or plain false"),
        ({"plain": "sometimes"}, "plain: 'sometimes' where one of false, true, only was expected"),
    ],
)
def test_settings_that_contradict_each_other_are_one_line(changes, told):
    with pytest.raises(UserError, match=told):
        TrainOptions(**changes)


def test_the_model_with_tags_does_not_get_the_folder_of_the_plain_model(tmp_path):
    with pytest.raises(UserError, match="with plain true, a folder of the name plain is that of the plain model"):
        ALTConfig(output_dir=str(tmp_path / "plain"), plain="true", credit_coef=1.0, use_cpu=True)


def test_a_plain_folder_that_is_taken_is_told_before_training(only, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(only, folder)
    with pytest.raises(UserError, match="plain already holds a run; add --resume_from_checkpoint true"):
        start(folder, "true").train()
    assert not (folder / "rollouts").exists()


def test_an_optimizer_of_the_model_with_tags_is_refused(tmp_path):
    with pytest.raises(UserError, match="plain true: the optimizer in `optimizers` trains the model with tags"):
        stages.plain_stage(
            ALTConfig(output_dir=str(tmp_path), plain="only", credit_coef=1.0, use_cpu=True), (object(), None)
        )


def test_several_processes_say_which_command_trains_the_plain_model(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(stages, "is_alone", lambda args: False)
    folder = tmp_path / "run"
    with caplog.at_level(logging.WARNING):
        start(folder, "true").train()
    command = f"nlf train --config {folder}/config.yaml --output_dir {folder} --plain only"
    assert f"plain: start `{command}` as this run was started" in caplog.text
    assert not (folder / "plain").exists()


def test_a_dry_run_counts_both_stages():
    options = TrainOptions(plain="true", credit_coef=1.0, reward_funcs=["length", "local"], max_completion_length=20)
    n = Counts(100, 3, 120, 64, 50, 0, 0, 0, stages=2)
    assert n.sampled == 300
    assert prefix_calls(options, n) == {"prefixes scored": "at most 20 a completion, 6,000 in all"}
    assert passes(options) == ["each run 3 times", "each run 2 times (plain)"]
    assert prefix_calls(TrainOptions(reward_funcs=["tiny:vowels"], credit_coef=1.0), n) == {}
    long = TrainOptions(credit_coef=1.0, max_completion_length=64)
    assert prefix_calls(long, n) == {"prefixes scored": "at most 32 a completion, 9,600 in all"}
    assert prefix_calls(TrainOptions(credit_coef=1.0, credit="completion"), n) == {}


# ---- the commands -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of `nlf train --plain true`, of two steps, from a model with files."""
    folder = tmp_path_factory.mktemp("cli")
    tiny.save(folder / "start")
    sizes = (
        "--steps_per_iteration 1 --num_train_epochs 2 --prompts_per_iteration 4 --num_generations 2 --max_prompts 8 "
        "--max_completion_length 3 --per_device_train_batch_size 4 --eval_strategy no --use_cpu true --credit_coef 1"
    )
    words = (
        f"train --model_name_or_path {folder / 'start'} --output_dir {folder / 'run'} --reward_funcs length {sizes}"
    )
    assert main([*words.split(), "--plain", "true"]) == 0
    return folder / "run"


def evaluated(model, folder) -> list[str]:
    """The names of the systems that `nlf evaluate` compares."""
    sizes = "--num_generations 2 --max_prompts 3 --max_completion_length 3 --prompts embedded --guidance_scales 0"
    words = f"evaluate --model {model} --output_dir {folder} --reward_funcs length {sizes}"
    assert main(words.split()) == 0
    found = json.loads((folder / "results.json").read_text())
    assert found["models"]["base"]["name"].endswith("start")
    return [system["name"] for system in found["systems"]]


def test_a_plain_model_is_a_system_of_its_own(trained, tmp_path, capsys):
    assert evaluated(trained, tmp_path / "both") == ["base", "best tag", "plain"]
    assert evaluated(trained / "plain", tmp_path / "plain") == ["base", "plain"]
    plain = (tmp_path / "both/generations-plain.jsonl").read_text()
    assert plain == (tmp_path / "plain/generations-plain.jsonl").read_text()
    assert main(["report", str(tmp_path / "both")]) == 0
    page = (tmp_path / "both/report.html").read_text()
    assert "The diamond is the plain model, which needs no tag." in page


def test_a_run_that_holds_a_plain_run_alone_means_that_run(trained, tmp_path, capsys):
    alone = tmp_path / "alone"
    shutil.copytree(trained / "plain", alone / "plain")
    assert model_folder(str(alone)) == str(alone / "plain") and is_plain_run(alone / "plain")
    assert model_folder(str(trained)) == str(trained) and not is_plain_run(trained)
    assert evaluated(alone, tmp_path / "evaluation") == ["base", "plain"]
    assert main(["report", str(alone)]) == 0 and (alone / "plain/report.html").is_file()
    words = f"sample --model {alone} --prompts embedded --max_prompts 2 --num_generations 1 --output_dir {tmp_path}/s"
    assert main(words.split()) == 0
    assert "without a tag" in capsys.readouterr().out


def test_a_dial_of_a_plain_model_does_not_overwrite_the_run_with_tags(trained, capsys):
    before = weights(trained)
    assert main(["distill", "--model", str(trained / "plain"), "--max_steps", "1"]) == 2
    assert "another" in capsys.readouterr().err and same(weights(trained), before)


def test_the_recorded_settings_of_the_run_with_tags_resume_both_stages(trained, tmp_path):
    """The trap: its config.yaml names tags that the plain run did not have."""
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    words = f"train --config {folder}/config.yaml --output_dir {folder} --resume_from_checkpoint true"
    assert main(words.split()) == 0
    assert same(weights(folder / "plain"), weights(trained / "plain"))
