"""What a training run shows a person: on a terminal bars and a row of figures for each iteration, elsewhere plain lines.

A few rounded figures stand here; metrics.jsonl and the trackers get every number in full. The callback takes the place
of Trainer's PrinterCallback and ProgressCallback.
"""

import time
from collections.abc import Mapping, Sequence

from tqdm.auto import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK

from nlf.data.markdown import rounded
from nlf.data.progress import duration, has_bars, open_bar, say
from nlf.evaluation.metrics import family

Figures = dict[str, str]  # heading → value

STEP = {
    "loss": "loss",
    "kl": "KL",
    "entropy": "entropy",
    "tag_accuracy": "tag accuracy",
    "learning_rate": "learning rate",
}
EVALUATION = {  # families of metrics → headings
    **{"reward": "eval reward", "toxicity_probability": "toxicity prob.", "positive_fraction": "positive"},
    **{"unscored_fraction": "unscored", "perplexity": "perplexity", "dist-2": "dist-2"},
}
AUDITED = {"eval reward", "toxicity prob."}  # the headings of an auditor


class Console(TrainerCallback):
    """Shows the progress of a Trainer.

    Args:
        title: The text before the bar of steps.
        steps_per_iteration: Steps between two rows of figures; None = training has no iterations.
        auditors: Labels of scorers whose figures come before those of the rewards.
    """

    def __init__(self, title: str, steps_per_iteration: int | None = None, auditors: Sequence[str] = ()):
        self.title, self.steps_per_iteration, self.auditors = title, steps_per_iteration, auditors
        self.bar: tqdm | None = None
        self.bars = False  # whether bars and tables are shown
        self.reward: Figures = {}  # of the iteration's completions
        self.headings: list[str] = []  # of the last table
        self.started = (time.monotonic(), 0)  # when and at which step
        self.told = -1  # the step of the last row

    def show_in(self, trainer: Trainer) -> None:
        """Show the progress of this trainer, in place of its own printing callbacks."""
        for other in (PrinterCallback, DEFAULT_PROGRESS_CALLBACK):
            trainer.remove_callback(other)
        trainer.add_callback(self)

    # ---- Trainer's events ---------------------------------------------------------------------------------------------

    def on_train_begin(self, args, state, control, **kwargs):
        self.bars = state.is_world_process_zero and has_bars() and not args.disable_tqdm
        self.started = (time.monotonic(), state.global_step)

    def on_epoch_begin(self, args, state, control, **kwargs):
        total = self.steps_per_iteration or state.max_steps
        self.bar = open_bar(self.title, total, state.global_step % total, "step", hidden=not self.bars)

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.update(1)

    def on_epoch_end(self, args, state, control, **kwargs):
        self.on_train_end(args, state, control)
        if self.told != state.global_step and not control.should_evaluate:
            self._tell(state, {})

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.close()
        self.bar = None

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        found = {name.removeprefix("eval_"): value for name, value in (metrics or {}).items()}
        figures: Figures = {}
        for label in self.auditors:
            audited = {name: found.pop(name) for name in [*found] if name.endswith(f"/{label}")}
            figures |= {f"{head} ({label})": value for head, value in _figures(audited).items() if head in AUDITED}
        self._tell(state, figures | _figures(found))

    def on_log(self, args, state, control, logs=None, **kwargs):
        logs = logs or {}
        if "iteration" in logs:
            self._tell_rollouts(state, logs)
        elif "loss" in logs:
            self._tell_step(state, logs)
        elif "train_runtime" in logs and state.is_world_process_zero:
            say(f"{self.title}: {state.global_step:,} steps, {duration(logs['train_runtime'])}")

    # ---- what is said -------------------------------------------------------------------------------------------------

    def _tell_rollouts(self, state, logs: Mapping[str, float]) -> None:
        """The rollouts of an iteration."""
        self.reward = {"reward": rounded(logs["reward"])}
        if state.is_world_process_zero and not self.bars:
            pool = f"pool of {logs['pool/size']:,} completions"
            say(f"{self._iteration(state, 1)}: reward {self.reward['reward']} of the new completions, {pool}")

    def _tell_step(self, state, logs: Mapping[str, float]) -> None:
        """The averages since the last logged step: beside the bar, or in a line."""
        found = {head: rounded(logs[name]) for name, head in STEP.items() if name in logs}
        if self.bars and self.bar is not None:
            self.bar.set_postfix({"loss": found["loss"]})
        elif state.is_world_process_zero:
            say(f"step {state.global_step:,} of {state.max_steps:,}: {_listed(found)}")

    def _tell(self, state, evaluation: Figures) -> None:
        """The figures of an iteration: a row of a table, or a line."""
        if not state.is_world_process_zero or not self.steps_per_iteration:
            return
        self.told = state.global_step
        figures = self.reward | evaluation | {"time left": self._time_left(state)}
        if not self.bars:
            say(f"{self._iteration(state)}: {_listed(figures)}")
            return
        figures = {"iteration": self._iteration(state).removeprefix("iteration ")} | figures
        rows = [list(figures.values())]
        if self.headings != list(figures):
            self.headings = list(figures)
            rows.insert(0, self.headings)
        widths = [max(len(heading), 6) for heading in figures]
        say("\n".join("  ".join(map(str.rjust, row, widths)) for row in rows))

    def _iteration(self, state, more: int = 0) -> str:
        """`iteration 2 of 3`; part of an iteration is a fraction."""
        if not state.max_steps:
            return "evaluation"
        steps = self.steps_per_iteration or state.max_steps
        return f"iteration {state.global_step / steps + more:.3g} of {state.max_steps / steps:.3g}"

    def _time_left(self, state) -> str:
        """The time that the remaining steps take at the speed so far."""
        start, step = self.started
        done, left = state.global_step - step, state.max_steps - state.global_step
        return duration((time.monotonic() - start) / done * left) if done else "–"


def _figures(found: Mapping[str, float]) -> Figures:
    """The figures of an evaluation under their headings; of several scorers' rewards the sum, not a part of it."""
    values = {family(name): value for name, value in reversed([*found.items()])} | dict(found)
    return {head: rounded(values[name]) for name, head in EVALUATION.items() if name in values}


def _listed(figures: Figures) -> str:
    return ", ".join(f"{heading} {value}" for heading, value in figures.items())
