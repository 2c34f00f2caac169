"""What the trainer does at Trainer's events: a new pool before each epoch, a checkpoint after it, a clean stop."""

from typing import TYPE_CHECKING

import torch
from transformers import TrainerCallback

if TYPE_CHECKING:
    from nlf.training.trainer import ALTTrainer


class IterationCallback(TrainerCallback):
    """Calls the trainer at Trainer's events: a new pool before each epoch, a checkpoint after it, a clean stop."""

    def __init__(self, trainer: "ALTTrainer"):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        best = self.trainer.run_dir / f"checkpoint-{state.best_global_step}"
        state.best_model_checkpoint = str(best) if best.is_dir() else None  # the run's folder may have moved since

    def on_epoch_begin(self, args, state, control, **kwargs):
        # Rewards may draw random numbers. Dropout must not see that, because a resumed run calls them for fewer parts.
        with torch.random.fork_rng([args.device] if args.device.type == "cuda" else []):
            self.trainer.refresh()

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.adapt()
        if self.trainer.stop.reached_any(self.trainer.accelerator):
            control.should_training_stop = True
        return control

    def on_epoch_end(self, args, state, control, **kwargs):
        # Save before the next iteration samples and at the very end, whatever the save strategy.
        control.should_save = self.trainer.saved_at != state.global_step
        whole = state.global_step % args.steps_per_iteration == 0  # a stop within an iteration comes before evaluation
        control.should_evaluate = control.should_evaluate and (whole or not self.trainer.stop.asked)
        return control
