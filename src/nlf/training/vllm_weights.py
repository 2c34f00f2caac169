"""Rollouts drawn by vLLM: the weights of an iteration are written as a plain model, sampled from, and removed.

A folder of its own rather than the checkpoint: there is none before iteration 0, which samples from the reference; a
LoRA checkpoint holds the adapter alone; and how sharded weights are saved is up to the accelerate config. What is written
here is always what `save_policy` writes at the end of a run, gathered on the first rank's CPU where weights are sharded,
so that no GPU ever holds a whole copy for sampling but vLLM's.

Each rank runs a vLLM of its own, on its own GPU and for its own parts; or, with `tensor_parallel_size` T, each first one
of T ranks does, on the GPUs of all T. The trainer's weights stay where they are. What its allocator holds beside
them is given back before, and vLLM's processes end with the last part, before anything is scored or trained.
"""

import contextlib
import copy
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate.utils.memory import clear_device_cache

from nlf.data.files import write_folder
from nlf.errors import UserError
from nlf.models.policy import Policy, save_policy
from nlf.models.sharding import DTYPES, whole
from nlf.sampling.factory import vllm_sampler
from nlf.sampling.vllm import VLLMSampler, require_vllm

if TYPE_CHECKING:
    from accelerate import Accelerator

    from nlf.training.config import ALTConfig

FOLDER = ".sampling"  # in the run's, which all nodes share


def check_sampler(args: "ALTConfig") -> None:
    """Before anything long is started.

    Raises:
        UserError: vLLM is not installed, or the ranks cannot be grouped as asked.
    """
    if args.sampler == "hf":
        return
    require_vllm()
    if args.world_size == 1:
        return
    if args.data_parallel_size > 1:
        raise UserError(
            f"data_parallel_size {args.data_parallel_size}: each of the {args.world_size} processes has a vLLM already; "
            "leave it out"
        )
    here = int(os.environ.get("LOCAL_WORLD_SIZE", args.world_size))
    if here % args.tensor_parallel_size:
        raise UserError(
            f"tensor_parallel_size {args.tensor_parallel_size}: the {here} processes of a machine cannot be grouped by "
            f"it; give a number that divides {here}"
        )


def share(args: "ALTConfig") -> tuple[int, int]:
    """(which, of how many): this rank among those that sample; -1 where another one samples on its GPU."""
    size = args.tensor_parallel_size if args.sampler == "vllm" and args.world_size > 1 else 1
    first = args.process_index % size == 0
    return args.process_index // size if first else -1, args.world_size // size


@contextlib.contextmanager
def handed_over(
    policy: Policy, empty: Policy | None, iteration: int, fresh: bool, args: "ALTConfig", accelerator: "Accelerator"
) -> Iterator[tuple[Policy, VLLMSampler]]:
    """The policy without need of its weights, and what samples from them. Every rank enters and leaves.

    Args:
        empty: As of `sharding.whole`.
        fresh: The weights are those of this iteration; where training has moved on, nothing is written, and nothing can
            be sampled.

    Raises:
        UserError: the folder cannot be written, or as `vllm_sampler`.
    """
    folder, first = Path(args.output_dir, FOLDER), accelerator.is_main_process
    models = ["reference_model" if iteration == 0 and policy.reference_model is not None else "model"]
    if fresh:
        with whole(policy, empty, models, device=torch.device("cpu"), keep=first) as gathered:
            if first:
                shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
                write_folder(folder, partial(save_policy, plain_start(gathered) if iteration == 0 else gathered))
    clear_device_cache(garbage_collection=True)
    accelerator.wait_for_everyone()
    shown = empty or policy
    with start_model(shown, iteration) as model:
        several = args.world_size > 1 and args.device.type == "cuda"
        dtype = DTYPES.get(accelerator.mixed_precision)
        sampler = vllm_sampler(
            model, args, str(folder), dtype=dtype, copies=args.data_parallel_size,
            device=args.device.index if several else None,
        )  # fmt: skip
    try:
        yield shown, sampler
    finally:
        sampler.close()
        if first:  # with no error, all ranks have sampled
            shutil.rmtree(folder, ignore_errors=True)


def plain_start(policy: Policy) -> Policy:
    """The reference as a model that can be saved: with LoRA, a copy of the policy without its adapter."""
    if policy.reference_model is not None:
        return replace(policy, model=policy.reference_model, reference_model=None)
    return replace(policy, model=copy.deepcopy(policy.model).unload())


@contextlib.contextmanager
def start_model(policy: Policy, iteration: int) -> Iterator[Policy]:
    """What to sample from: the reference in iteration 0, the policy after."""
    if iteration > 0:
        yield policy
    else:
        with policy.reference() as model:
            yield Policy(model, policy.tokenizer, policy.scheme, None, policy.added_token_ids)
