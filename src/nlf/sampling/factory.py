"""Which sampler draws: this process, vLLM, or a server."""

from pathlib import Path
from typing import TYPE_CHECKING

from nlf.config import SamplerOptions
from nlf.models.policy import Policy, model_path
from nlf.sampling import Sampler, context_of
from nlf.sampling.hf import HFSampler

if TYPE_CHECKING:
    from nlf.sampling.vllm import VLLMSampler


def sampler_of(policy: Policy, options: SamplerOptions | None = None, token_budget: int | None = None) -> Sampler:
    """What draws a policy's completions; without options, this process.

    Args:
        token_budget: Tokens in a batch of this process.

    Raises:
        UserError: vLLM is not installed, too few GPUs, or no URL.
    """
    options = options or SamplerOptions()
    return SAMPLERS[options.sampler](policy, options, token_budget)


def _hf(policy: Policy, options: SamplerOptions, token_budget: int | None) -> Sampler:
    return HFSampler(policy.model, **_ends(policy), token_budget=token_budget, compile=options.sampler_compile)


def _vllm(policy: Policy, options: SamplerOptions, token_budget: int | None) -> Sampler:
    path = model_path(policy.identity.name)
    return vllm_sampler(policy, options, path, revision=None if Path(path).is_dir() else policy.revision)


def vllm_sampler(
    policy: Policy,
    options: SamplerOptions,
    path: str,
    *,
    revision: str | None = None,
    dtype=None,
    device: int | None = None,
) -> "VLLMSampler":
    """vLLM over the policy as it stands in a folder or on the hub.

    Args:
        dtype: torch's, of weights and activations; None = the model's.
        device: As of `VLLMSampler`.

    Raises:
        UserError: vLLM is not installed, or too few GPUs.
    """
    from nlf.sampling.vllm import VLLMSampler

    model = policy.model
    code = type(model.get_base_model() if hasattr(model, "get_base_model") else model).__module__
    return VLLMSampler(
        path,
        revision=revision,
        dtype=str(dtype or model.dtype).removeprefix("torch."),
        trust_remote_code=code.startswith("transformers_modules"),  # then it was for us
        context=context_of(model.config),
        tensor_parallel_size=options.tensor_parallel_size,
        data_parallel_size=options.data_parallel_size,
        gpu_memory_utilization=options.gpu_memory_utilization,
        device=device,
        **_ends(policy),
    )


def _server(policy: Policy, options: SamplerOptions, token_budget: int | None) -> Sampler:
    from nlf.sampling.server import ServerSampler

    return ServerSampler(
        options.sampler_url,
        options.sampler_model or policy.identity.name,
        policy.tokenizer,
        context=context_of(policy.model.config),
        concurrency=options.sampler_concurrency,
        timeout=options.sampler_timeout,
        **_ends(policy),
    )


def _ends(policy: Policy) -> dict[str, tuple[int, ...]]:
    return {"eos_token_ids": policy.eos_token_ids, "banned_token_ids": policy.banned_token_ids}


SAMPLERS = {"hf": _hf, "vllm": _vllm, "server": _server}
