"""The console of training: a row of rounded figures for each iteration on a terminal, whole lines in a file."""

import io
import sys
from types import SimpleNamespace

import pytest
from runs import make

from nlf.training.console import Console

POOL = {"iteration": 0, "pool/size": 2048, "reward": 0.7138720000000001, "quantile/0/low": 0.1}
STEP = {"loss": 0.69314718, "kl": 0.0012345, "learning_rate": 5e-4, "grad_norm": 1.0}
EVALUATION = {
    **{
        "eval_reward": 0.71387,
        "eval_toxicity_probability@25": 0.875,
        "eval_insult": 0.226,
        "eval_perplexity": 36.4252,
    },
    **{"eval_dist-2": 0.87895, "eval_toxicity": 0.27, "eval_unscored/local@1": 0},
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(monkeypatch, stderr: io.StringIO, disable_tqdm: bool = False, evaluates: bool = True) -> str:
    """What two iterations of two steps print, if a step takes 30 seconds."""
    monkeypatch.setattr(sys, "stderr", stderr)
    console, args = Console("training", 2), SimpleNamespace(disable_tqdm=disable_tqdm)
    state = SimpleNamespace(global_step=0, max_steps=4, is_world_process_zero=True)
    monkeypatch.setattr("nlf.training.console.time", SimpleNamespace(monotonic=lambda: 30.0 * state.global_step))
    control = SimpleNamespace(should_evaluate=evaluates)
    console.on_train_begin(args, state, control)
    for _ in range(2):
        console.on_log(args, state, control, logs=POOL)
        console.on_epoch_begin(args, state, control)
        for _ in range(2):
            state.global_step += 1
            console.on_step_end(args, state, control)
        console.on_log(args, state, control, logs=STEP)
        console.on_epoch_end(args, state, control)
        if evaluates:
            console.on_evaluate(args, state, control, metrics=EVALUATION)
    console.on_log(args, state, control, logs={"train_runtime": 130.0})
    console.on_train_end(args, state, control)
    return stderr.getvalue()


def test_a_file_gets_whole_lines_with_a_few_rounded_numbers(monkeypatch):
    printed = run(monkeypatch, io.StringIO())
    assert "\r" not in printed
    assert printed.splitlines() == [
        "iteration 1 of 2: reward 0.714 of the new completions, pool of 2,048 completions",
        "step 2 of 4: loss 0.693, KL 0.00123, learning rate 0.000500",
        "iteration 1 of 2: reward 0.714, eval reward 0.714, toxicity prob. 0.875, perplexity 36.4, dist-2 0.879, time left 60 s",
        "iteration 2 of 2: reward 0.714 of the new completions, pool of 2,048 completions",
        "step 4 of 4: loss 0.693, KL 0.00123, learning rate 0.000500",
        "iteration 2 of 2: reward 0.714, eval reward 0.714, toxicity prob. 0.875, perplexity 36.4, dist-2 0.879, time left 0 s",
        "training: 4 steps, 2 min",
    ]


def test_a_terminal_gets_one_table_that_bars_do_not_run_into(monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    printed = run(monkeypatch, Terminal())
    rows = [line for line in printed.replace("\r", "\n").splitlines() if line.strip() and "|" not in line]
    assert rows[0] == "iteration  reward  eval reward  toxicity prob.  perplexity  dist-2  time left"
    assert [row.split()[:3] for row in rows[1:3]] == [["1", "of", "2"], ["2", "of", "2"]]
    assert rows[3:] == ["training: 4 steps, 2 min"] and len(rows[0]) < 80
    assert "training: 100%" in printed and "loss=0.693" in printed


@pytest.mark.parametrize("name", ["disable_tqdm", "TQDM_DISABLE"])
def test_switched_off_bars_leave_the_lines_of_a_file(monkeypatch, name):
    monkeypatch.setenv("TQDM_DISABLE", "1" if name == "TQDM_DISABLE" else "")
    printed = run(monkeypatch, Terminal(), disable_tqdm=name == "disable_tqdm")
    assert "%" not in printed and "step 2 of 4: loss 0.693" in printed


def test_a_run_without_evaluation_has_its_figures_too(monkeypatch):
    printed = run(monkeypatch, io.StringIO(), evaluates=False)
    assert "iteration 1 of 2: reward 0.714, time left 60 s" in printed


def test_an_iteration_that_ends_on_an_evaluated_step_is_told_once(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    console, args = Console("training", 2), SimpleNamespace(disable_tqdm=False)
    state = SimpleNamespace(global_step=2, max_steps=4, is_world_process_zero=True)
    console.on_evaluate(args, state, None, metrics=EVALUATION)
    console.on_epoch_end(args, state, SimpleNamespace(should_evaluate=False))
    assert len(sys.stderr.getvalue().splitlines()) == 1


def test_no_completion_is_shown_unasked_and_no_callback_of_trainer_prints(tmp_path, capsys, caplog):
    caplog.set_level("INFO", "nlf")
    trainer = make(tmp_path, num_train_epochs=1, steps_per_iteration=1)
    trainer.train()
    shown = capsys.readouterr()
    assert shown.out == "" and "iteration 1 of 1" in shown.err and "{" not in shown.err
    assert "⟶" not in caplog.text
    names = {type(each).__name__ for each in trainer.callback_handler.callbacks}
    assert "Console" in names and not {"PrinterCallback", "ProgressCallback"} & names


def test_completions_that_are_asked_for_have_rounded_scores(caplog):
    from nlf.training.evaluation import log_completions

    caplog.set_level("INFO", "nlf")
    scores = {"local@1": {"reward": [0.7138720000000001]}}
    line = {"feedback": "Good", "prompt": "Once", "completions": [" more\n\x1b[2J!"], "scores": scores}
    log_completions([line], [SimpleNamespace(label="local@1")], 1, 40)
    assert caplog.messages == ["step 40 | Good | Once ⟶ more �[2J! | local@1 0.714"]


def test_the_sum_of_several_rewards_is_shown_and_not_the_first_of_them(monkeypatch):
    monkeypatch.setitem(EVALUATION, "eval_reward", 8.5)
    first = {"eval_reward/vowels": 0.27, "eval_reward/length": 8.23} | EVALUATION
    monkeypatch.setattr(sys.modules[__name__], "EVALUATION", first)
    assert "eval reward 8.5" in run(monkeypatch, io.StringIO())


def test_an_auditors_figures_come_before_those_of_the_reward(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    console, args = Console("training", 2, ["audit@1"]), SimpleNamespace(disable_tqdm=False)
    state = SimpleNamespace(global_step=2, max_steps=4, is_world_process_zero=True)
    more = {"eval_reward/audit@1": 0.5, "eval_toxicity_probability@25/audit@1": 0.9, "eval_unscored/audit@1": 0}
    console.on_evaluate(args, state, None, metrics=EVALUATION | more)
    said = sys.stderr.getvalue()
    assert (
        ": eval reward (audit@1) 0.500, toxicity prob. (audit@1) 0.900, eval reward 0.714, toxicity prob. 0.875"
        in said
    )
