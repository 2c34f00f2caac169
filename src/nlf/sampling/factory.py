"""Make the sampler that the options name: this process, vLLM, or a server."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nlf.config import SamplerOptions
from nlf.models.policy import Policy
from nlf.models.reading import vocabulary_size
from nlf.models.sources import model_path
from nlf.sampling import Sampler, Vocabulary, context_of
from nlf.sampling.hf import HFSampler
from nlf.sampling.vllm import Engine, VLLMSampler


def sampler_of(policy: Policy, options: SamplerOptions | None = None, token_budget: int | None = None) -> Sampler:
    """The sampler of a policy's completions.

    Args:
        options: None = this process.
        token_budget: Most tokens in a batch of this process; None suits the device.

    Raises:
        UserError: vLLM is not installed, there are too few GPUs, or the server has no URL.
    """
    options = options or SamplerOptions()
    return SAMPLERS[options.sampler](policy, options, token_budget)


def vocabulary_of(policy: Policy) -> Vocabulary:
    """The policy's EOS ids, banned ids, context and number of ids."""
    context, size = context_of(policy.model.config), vocabulary_size(policy.model)
    return Vocabulary(policy.eos_token_ids, policy.banned_token_ids, context, size)


def _hf(policy: Policy, options: SamplerOptions, token_budget: int | None) -> Sampler:
    return HFSampler(
        policy.model,
        eos_token_ids=policy.eos_token_ids,
        banned_token_ids=policy.banned_token_ids,
        token_budget=token_budget,
        compile=options.sampler_compile,
    )


def _vllm(policy: Policy, options: SamplerOptions, token_budget: int | None) -> Sampler:
    path = model_path(policy.identity.name)
    revision = None if Path(path).is_dir() else policy.revision
    return vllm_sampler(policy, options, path, revision=revision, copies=options.data_parallel_size)


def vllm_sampler(
    policy: Policy,
    options: SamplerOptions,
    path: str,
    *,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    copies: int = 1,
    device: int | None = None,
) -> VLLMSampler:
    """A vLLM sampler of the policy's weights, read from a folder or the hub.

    Args:
        dtype: Type of weights and activations; None = the model's type.
        copies, device: See `VLLMSampler`.

    Raises:
        UserError: vLLM is not installed, or there are too few GPUs.
    """
    model: Any = policy.model  # peft's get_base_model is unknown to transformers' types
    code = type(model.get_base_model() if hasattr(model, "get_base_model") else model).__module__
    engine = Engine(
        path,
        revision=revision,
        dtype=str(dtype or model.dtype).removeprefix("torch."),
        trust_remote_code=code.startswith("transformers_modules"),  # trusted when this process loaded the code
        tensor_parallel_size=options.tensor_parallel_size,
        gpu_memory_utilization=options.gpu_memory_utilization,
    )
    return VLLMSampler(engine, vocabulary_of(policy), copies=copies, device=device)


def _server(policy: Policy, options: SamplerOptions, token_budget: int | None) -> Sampler:
    from nlf.sampling.server import ServerSampler  # imported here, since it loads an HTTP client

    assert options.sampler_url  # the options refuse a server without one
    return ServerSampler(
        options.sampler_url,
        options.sampler_model or policy.identity.name,
        policy.tokenizer,
        vocabulary_of(policy),
        concurrency=options.sampler_concurrency,
        timeout=options.sampler_timeout,
    )


SAMPLERS: dict[str, Callable[[Policy, SamplerOptions, int | None], Sampler]] = {
    "hf": _hf,
    "vllm": _vllm,
    "server": _server,
}
