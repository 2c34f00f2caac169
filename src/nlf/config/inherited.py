"""The arguments of transformers' TrainingArguments in this project: defaults, types, bounds, and those that are refused."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nlf.config.knobs import Rule, bounds, check_value
from nlf.config.objective import BATCH, following
from nlf.errors import UserError, shown

TRAINING_DEFAULTS: dict[str, Any] = {  # where ours differ from transformers' TrainingArguments
    "output_dir": "runs/toxicity-embedded",
    "num_train_epochs": following("num_train_epochs"),  # one epoch is one iteration
    "learning_rate": following("learning_rate"),
    **{name: following(name) for name in BATCH},
    "warmup_steps": following("warmup_steps"),
    "lr_scheduler_type": following("lr_scheduler_type"),
    "max_grad_norm": 1.0,
    "adam_epsilon": 1e-8,
    "weight_decay": 0.0,
    "logging_steps": following("logging_steps"),
    "logging_nan_inf_filter": False,  # a NaN loss must be seen
    "eval_strategy": following("eval_strategy"),
    "eval_steps": following("eval_steps"),
    "bf16": following("bf16"),
    "save_strategy": "epoch",
    "save_total_limit": following("save_total_limit"),
    "report_to": "none",
    "seed": 42,
    "dataloader_num_workers": 0,
    "remove_unused_columns": False,
    "use_cache": True,  # Trainer writes it into the model's config.json; training passes use no cache
}
TRAINING_TYPES = {"fsdp": "bool | str | None"}  # what it takes, which is more than its annotation says
SEED = bounds(least=0, most=2**32 - 1)
COUNT = bounds(above=0)


def _are_steps(number: float) -> bool:
    return 0 <= number < 1 or number == int(number) > 0


STEPS = Rule(_are_steps, "a whole number of steps, or a share of all steps below 1,")
TRAINING_RULES: dict[str, Rule] = {  # bounds that TrainingArguments does not check
    "output_dir": Rule(bool, "the path of a folder"),
    "num_train_epochs": Rule(lambda n: n == int(n) >= 0, "a whole number of iterations, 1 or more,"),
    "max_steps": Rule(lambda n: n == -1 or n > 0, "-1 (num_train_epochs decides), or 1 or more,"),
    **dict.fromkeys(("per_device_train_batch_size", "gradient_accumulation_steps", "ddp_timeout"), COUNT),
    **dict.fromkeys(("save_total_limit", "dataloader_prefetch_factor", "ddp_bucket_cap_mb"), COUNT),
    **dict.fromkeys(("learning_rate", "max_grad_norm", "weight_decay", "adam_epsilon", "eval_delay"), bounds(least=0)),
    **dict.fromkeys(("dataloader_num_workers", "neftune_noise_alpha"), bounds(least=0)),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), Rule(lambda n: 0 <= n < 1, "a number from 0 to below 1")),
    **dict.fromkeys(("warmup_steps", "eval_steps"), STEPS),
    **dict.fromkeys(
        ("logging_steps", "save_steps"), Rule(lambda n: n > 0 and _are_steps(n), f"1 or more: {STEPS.expected}")
    ),
    **dict.fromkeys(
        ("lr_scheduler_kwargs", "activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"),
        Rule(lambda given: isinstance(given, dict), 'names and values, such as {"num_cycles": 2},'),
    ),
    **dict.fromkeys(
        ("fsdp_config", "accelerator_config"),
        Rule(lambda given: not isinstance(given, str) or Path(given).is_file(), "names and values, or a JSON file,"),
    ),
    "optim_args": Rule(
        lambda text: all(part.count("=") == 1 for part in text.split(",")), "'name=value', with commas between"
    ),
    "seed": SEED,
}


class Fixed(NamedTuple):
    """An argument that training does not use: the values that change nothing, and why another value has no meaning."""

    values: tuple
    why: str


OWN_EVALUATION = "evaluation samples, scores and measures in batches of its own"
OWN_LOSS = "the loss is that of docs/method.md"
OWN_ORDER = "the seed fixes the order of the rollouts, so that a resumed run gives the same bits"
FIXED: dict[str, Fixed] = {
    "label_smoothing_factor": Fixed((0,), OWN_LOSS),
    "average_tokens_across_devices": Fixed((True,), f"{OWN_LOSS}, whose averages always count all devices"),
    "label_names": Fixed((None,), OWN_LOSS),
    "use_liger_kernel": Fixed((False,), f"{OWN_LOSS}, which needs the logits that liger's fused loss does not give"),
    "liger_kernel_config": Fixed((None,), "training does not use liger's kernels"),
    "per_device_eval_batch_size": Fixed((8,), OWN_EVALUATION),
    "eval_accumulation_steps": Fixed((None,), OWN_EVALUATION),
    "eval_do_concat_batches": Fixed((True,), OWN_EVALUATION),
    "eval_use_gather_object": Fixed((False,), OWN_EVALUATION),
    "include_for_metrics": Fixed(([],), OWN_EVALUATION),
    **dict.fromkeys(("prediction_loss_only", "batch_eval_metrics"), Fixed((False,), OWN_EVALUATION)),
    **dict.fromkeys(("bf16_full_eval", "fp16_full_eval"), Fixed((False,), f"{OWN_EVALUATION}; see dtype and bf16")),
    "do_predict": Fixed((False,), "`nlf sample` and `nlf evaluate` use a trained model"),
    "debug": Fixed(("", []), "transformers' debugging fails on tensors without tokens, which sampling passes make"),
    "data_seed": Fixed((None,), OWN_ORDER),
    "train_sampling_strategy": Fixed(("random", "sequential"), OWN_ORDER),
    "length_column_name": Fixed(("length",), "rollouts are grouped by their own lengths"),
    "dataloader_multiprocessing_context": Fixed((None, "fork"), "workers get the rollouts by fork"),
    "dataloader_in_order": Fixed((True,), OWN_ORDER),
    "ignore_data_skip": Fixed((False,), OWN_ORDER),
    "dataloader_drop_last": Fixed((False,), "an iteration has steps_per_iteration whole batches"),
    "remove_unused_columns": Fixed((False,), "the loss needs every column of a rollout"),
    "include_num_input_tokens_seen": Fixed(("no", False), "batches have no column that Trainer could count"),
    "auto_find_batch_size": Fixed(
        (False,), "a smaller batch would change the result; lower per_device_train_batch_size and raise "
        "gradient_accumulation_steps by the same factor"
    ),
    "enable_jit_checkpoint": Fixed((False,), "training always saves a checkpoint at SIGTERM"),
    "parallelism_config": Fixed((None,), "training has no tensor or context parallelism; see docs/scaling.md"),
    "resume_from_checkpoint": Fixed((None,), "ALTTrainer.train takes it"),
}  # fmt: skip


def check_inherited(values: Mapping[str, Any]) -> None:
    """Check the arguments of TrainingArguments among `values`: their bounds, and that training uses them.

    Raises:
        UserError: the first value that is not allowed.
    """
    for name, value in values.items():
        check_value(name, value, TRAINING_RULES.get(name))
        if name in FIXED and value not in (None, *FIXED[name].values):
            raise UserError(f"{name} {shown(value)} is not a setting of training: {FIXED[name].why}; leave {name} out")


TRAINING_SHORT = (  # the arguments of TrainingArguments in the short help
    *("output_dir", "num_train_epochs", "learning_rate", "per_device_train_batch_size"),
    *("gradient_accumulation_steps", "bf16", "seed", "report_to"),
)
