"""`nlf train --accelerate_config`: start the same command through `accelerate launch`, one process for each GPU."""

import logging
import math
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nlf.cli.arguments import shipped, shipped_or_file
from nlf.config import Rule, bounds, check_value
from nlf.data.yaml_files import read_mapping
from nlf.errors import UserError

logger = logging.getLogger(__name__)

LAUNCH_FLAGS = {  # flags that `accelerate launch` gets: type and help
    "num_processes": (int, "processes on all machines together [one for each GPU]"),
    "num_machines": (int, "machines of the run; start the same command on each [1]"),
    "machine_rank": (int, "which of the machines this is, from 0 [0]"),
    "main_process_ip": (str, "address of machine 0"),
    "main_process_port": (int, "a free port of machine 0"),
    "mixed_precision": (str, "no, bf16 or fp16 [bf16]"),
}
LAUNCH_RULES = {
    "num_processes": bounds(above=0),
    "num_machines": bounds(above=0),
    "machine_rank": bounds(least=0),
    "main_process_port": bounds(least=1, most=65535),
    "mixed_precision": Rule(("no", "bf16", "fp16").__contains__, "one of no, bf16, fp16"),
}


def accelerate_configs() -> dict[str, Path]:
    """The embedded accelerate configurations, by name."""
    return shipped("accelerate_configs")


def launch(name: str, wanted: dict[str, Any], argv: Sequence[str], use_cpu: bool) -> None:
    """Replace this process by `accelerate launch --config_file … -m nlf train …`, with the same arguments.

    Args:
        name: A shipped configuration, or a file.
        wanted: The values of the `LAUNCH_FLAGS` that were given.
        argv: The arguments of `nlf train`.
        use_cpu: The run uses the CPU only.

    Raises:
        UserError: a flag is out of bounds; there is no such configuration; DeepSpeed or the GPUs that it needs are missing;
            or torchrun has already started this process.
    """
    for flag, value in wanted.items():
        check_value(f"--{flag}", value, LAUNCH_RULES.get(flag))
    if wanted.get("machine_rank", 0) >= wanted.get("num_machines", math.inf):
        raise UserError(f"--machine_rank {wanted['machine_rank']}: the {wanted['num_machines']} machines count from 0")
    if "RANK" in os.environ:
        raise UserError("--accelerate_config starts the processes itself: leave out torchrun, or this flag")
    path = shipped_or_file(name, "accelerate_configs", "accelerate configuration")
    settings = accelerate_settings(path)
    check_kind(name, settings["distributed_type"], use_cpu)
    if name in accelerate_configs() and "num_processes" not in wanted:
        wanted = wanted | {"num_processes": count_gpus(name, use_cpu) * wanted.get("num_machines", 1)}
    flags = [word for flag, value in wanted.items() for word in (f"--{flag}", str(value))]
    start = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(path), *flags]
    precision = wanted.get("mixed_precision", settings.get("mixed_precision"))
    os.execv(sys.executable, [*start, "-m", "nlf", "train", *own_arguments(argv, precision)])


def check_kind(name: str, kind: str, use_cpu: bool) -> None:
    """Refuse DeepSpeed if it is not installed, and warn that accelerate does not shard on a CPU.

    Raises:
        UserError: DeepSpeed is missing.
    """
    if kind == "DEEPSPEED" and find_spec("deepspeed") is None:
        raise UserError(f"accelerate config {name} needs DeepSpeed: pip install deepspeed, or use fsdp2")
    if use_cpu and kind in ("FSDP", "DEEPSPEED"):
        logger.warning("%s: accelerate shards on GPUs only; on CPU each process holds the whole model", name)


def own_arguments(argv: Sequence[str], precision: str | None) -> list[str]:
    """The given arguments without the launch flags, plus the precision: the arguments of `nlf train` in each process."""
    own = without(argv, ("accelerate_config", *LAUNCH_FLAGS))
    if precision in ("bf16", "fp16") and without(own, [precision]) == own:
        own += [f"--{precision}", "true"]  # DeepSpeed compares the two
    return own


def accelerate_settings(path: Path) -> dict[str, Any]:
    """Read an accelerate configuration.

    Raises:
        UserError: the file is not an accelerate configuration.
    """
    settings = read_mapping(path)
    if "distributed_type" not in settings:
        raise UserError(
            f"{path}: expected an accelerate config with a distributed_type; `accelerate config` writes one"
        )
    return settings


def count_gpus(name: str, use_cpu: bool) -> int:
    """Count the GPUs of this machine, to start one process for each.

    Raises:
        UserError: there are no GPUs, or `use_cpu` is on.
    """
    import torch

    found = 0 if use_cpu else torch.accelerator.device_count()
    if not found:
        raise UserError(f"accelerate config {name}: no GPU to count here; add --num_processes N (and --use_cpu true)")
    return found


def without(argv: Sequence[str], names: Sequence[str]) -> list[str]:
    """Remove flags and their values from arguments."""
    rest, skip = [], False
    for word in argv:
        flag = word.partition("=")[0].replace("-", "_").removeprefix("__")
        if not skip and not (word.startswith("--") and flag in names):
            rest.append(word)
        skip = not skip and word.startswith("--") and flag in names and "=" not in word
    return rest
