"""The policy of a run, ready to be sampled and measured: whole weights, evaluation mode, and a sampler."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from accelerate import Accelerator

from nlf import config
from nlf.models.policy import Policy
from nlf.models.sharding import DTYPES, MODELS, moved, whole
from nlf.sampling import Sampler
from nlf.sampling.factory import sampler_of
from nlf.training.config import ALTConfig
from nlf.training.vllm_weights import handed_over, sampled_model


@dataclass(frozen=True)
class RunPolicy:
    """Gives out the policy of a run between its training steps.

    Attributes:
        empty: The policy's `sharding.skeleton`; None = nothing is sharded.
        reference_device: The device of the reference; None = the device of the policy.
    """

    policy: Policy
    empty: Policy | None
    reference_device: torch.device | None
    args: ALTConfig
    accelerator: Accelerator

    @contextlib.contextmanager
    def sampling(self, iteration: int, outdated: bool) -> Iterator[tuple[Policy, Sampler]]:
        """The policy that an iteration samples, and its sampler: in this process, or vLLM.

        Args:
            outdated: Training has changed this iteration's weights, so that sampling is an error.
        """
        if iteration < self.args.logged_iterations:  # nothing is sampled
            yield self.policy, cast(Sampler, None)
            return
        if self.args.sampler == "vllm":
            with handed_over(self.policy, self.empty, iteration, outdated, self.args, self.accelerator) as handed:
                yield handed
            return
        start = iteration == 0 and self.policy.reference_model is not None
        with (
            self.evaluating(["reference_model" if start else "model"]) as policy,
            sampled_model(policy, iteration) as model,
            self.open_sampler(model) as sampler,
        ):
            yield model, sampler

    def open_sampler(self, policy: Policy) -> contextlib.closing:
        """A sampler of a policy's completions in this process, closed at the end of the `with` block."""
        options = config.SamplerOptions(sampler_compile=self.args.sampler_compile)
        return contextlib.closing(sampler_of(policy, options))

    @contextlib.contextmanager
    def evaluating(self, models: Sequence[str] = MODELS) -> Iterator[Policy]:
        """The policy with whole weights on this rank, without dropout, in the run's precision.

        Args:
            models: Names of the policy's models that are needed. If training shards weights, other models stay without.
        """
        mode, dtype = self.policy.model.training, DTYPES.get(self.accelerator.mixed_precision)
        self.policy.model.eval()
        gathered = whole(self.policy, self.empty, models, device=self.args.device, dtype=dtype)
        away = self.policy.reference_model if self.reference_device else None
        try:
            with moved(away, self.args.device), gathered as policy, self.accelerator.autocast():
                yield policy
        finally:
            self.policy.model.train(mode)
