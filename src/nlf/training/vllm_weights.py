"""Rollouts from vLLM: write an iteration's weights as a plain model, sample from it, and remove it.

The weights go into a separate folder, because a checkpoint cannot serve: iteration 0 samples the reference, which has
no checkpoint; a LoRA checkpoint holds the adapter only; and the accelerate config decides how sharded weights are
saved. The folder is written by `save_policy`, as at the end of a run. Sharded weights are gathered on the first rank's
CPU, so that vLLM holds the only whole copy on a GPU.

Each rank runs a vLLM on its own GPU for its own parts. With `tensor_parallel_size` T, every T-th rank runs a vLLM on
the GPUs of T ranks. The trainer's weights stay on the GPUs, but its allocator frees unused memory before vLLM starts.
vLLM's processes end after the last part, before rollouts are scored.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache

from nlf.config import sampler_options
from nlf.data.files import write_folder
from nlf.errors import UserError
from nlf.models.policy import Policy, save_policy
from nlf.models.quantized import merged
from nlf.models.sharding import DTYPES, whole
from nlf.sampling.factory import vllm_sampler
from nlf.sampling.vllm import VLLMSampler, require_vllm
from nlf.training.config import ALTConfig
from nlf.training.ranks import Share

FOLDER = ".sampling"  # in the run's folder, which all nodes share


def check_sampler(args: ALTConfig) -> None:
    """Check the sampler's settings before anything long starts.

    Raises:
        UserError: vLLM is not installed, or the ranks cannot be grouped by `tensor_parallel_size`.
    """
    if args.sampler == "hf":
        return
    require_vllm()
    if args.world_size == 1:
        return
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", str(args.world_size)))
    if local_size % args.tensor_parallel_size:
        raise UserError(
            f"tensor_parallel_size {args.tensor_parallel_size}: the {local_size} processes of a machine cannot be grouped "
            f"by it; give a number that divides {local_size}"
        )


def share(args: ALTConfig) -> Share:
    """This rank's share of an iteration's parts: none where another rank runs vLLM on this rank's GPU."""
    size = args.tensor_parallel_size if args.sampler == "vllm" and args.world_size > 1 else 1
    group, place = divmod(args.process_index, size)
    return Share(group if place == 0 else None, args.world_size // size)


@contextlib.contextmanager
def handed_over(
    policy: Policy, empty: Policy | None, iteration: int, outdated: bool, args: ALTConfig, accelerator: Accelerator
) -> Iterator[tuple[Policy, VLLMSampler]]:
    """Give this iteration's weights to vLLM. All ranks must call it.

    Args:
        empty: The policy's `sharding.skeleton`; None = nothing is sharded.
        outdated: Training has changed this iteration's weights, so no weights are written and sampling is an error.

    Yields:
        The policy that is sampled, whose weights are not needed here, and the vLLM sampler of its weights.

    Raises:
        UserError: the folder cannot be written; see also `vllm_sampler`.
    """
    folder, first = Path(args.output_dir or "", FOLDER), accelerator.is_main_process
    if not outdated:
        models = ["reference_model" if iteration == 0 and policy.reference_model is not None else "model"]
        with whole(policy, empty, models, device=torch.device("cpu"), keep=first) as gathered:
            if first:
                shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed
                write_folder(folder, partial(save_policy, plain_start(gathered) if iteration == 0 else gathered))
    clear_device_cache(garbage_collection=True)
    accelerator.wait_for_everyone()
    with sampled_model(empty or policy, iteration) as model:
        several = args.world_size > 1 and args.device.type == "cuda"
        dtype = DTYPES.get(accelerator.mixed_precision)
        device = args.device.index if several else None
        sampler = vllm_sampler(model, sampler_options(args), str(folder), dtype=dtype, device=device)
    try:
        yield model, sampler
    finally:
        sampler.close()
        if first:  # without an error, all ranks have sampled their parts
            shutil.rmtree(folder, ignore_errors=True)


def plain_start(policy: Policy) -> Policy:
    """The reference as a model that can be saved: with LoRA, a copy of the policy without its adapter."""
    if policy.reference_model is not None:
        return replace(policy, model=policy.reference_model, reference_model=None)
    return replace(policy, model=merged(policy.model, adapter=False))


@contextlib.contextmanager
def sampled_model(policy: Policy, iteration: int) -> Iterator[Policy]:
    """The model that an iteration samples: the reference in iteration 0, then the policy."""
    if iteration > 0:
        yield policy
    else:
        with policy.reference() as model:
            yield Policy(model, policy.tokenizer, policy.scheme, None, policy.added_token_ids)
