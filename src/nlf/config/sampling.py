"""Knobs of sampling: the rule by which tokens are drawn, and the program that draws them."""

from dataclasses import dataclass
from typing import Any, Literal

from nlf.config.knobs import Following, Options, Rule, among, knob, like
from nlf.config.objective import LENGTH, following
from nlf.config.rewards import DAY
from nlf.errors import UserError

MOST_GUIDANCE = 1000
OF_A_RUN = Following(f"the run's, else {following(LENGTH)}")
TEMPERATURE = Rule(lambda t: t == 0 or t >= 1e-4, "0, or a number from 0.0001,")  # float32 divides by no less


@dataclass
class TrainSamplingOptions(Options):
    """How rollouts are drawn."""

    num_generations: int = knob(4, "Completions of each prompt.", above=0, short=True)
    max_completion_length: int = knob(following(LENGTH), "Most new tokens of a completion.", above=0, short=True)
    min_completion_length: int = knob(0, "EOS cannot be sampled before this length.", least=0)
    temperature: float = knob(
        1.0, "Divide the logits by this number; 0 takes the most likely token.", rule=TEMPERATURE, short=True
    )
    top_p: float = knob(
        1.0,
        "Sample from the smallest set of tokens whose probabilities sum to this number or more; 1 is off.",
        above=0,
        most=1,
        short=True,
    )
    top_k: int = knob(0, "Sample from this number of the most likely tokens; 0 is off.", least=0)

    def check_together(self) -> None:
        super().check_together()
        check_length(self)


def check_length(options: Any) -> None:
    """Raise UserError if completions have a minimum length above their maximum length."""
    least, most = options.min_completion_length, options.max_completion_length
    if not isinstance(most, Following) and least > most:
        raise UserError(f"min_completion_length ({least}) is above max_completion_length ({most})")


NEGATIVE_TAG = "The tag that guidance moves away from; null is the worst tag."


@dataclass
class SamplingOptions(TrainSamplingOptions):
    """How completions are drawn, guidance included."""

    max_completion_length: int = like(TrainSamplingOptions, LENGTH, 20)
    guidance_scale: float = knob(
        0.0,
        "Strength g of guidance: transformers' guidance_scale minus 1. Tokens are sampled from (1+g) log p(.|tag) - g log "
        "p(.|negative tag), and EOS keeps its probability. Guidance takes two forward passes per token; 0 is off.",
        least=0,
        most=MOST_GUIDANCE,
    )
    negative_tag: str | None = knob(None, NEGATIVE_TAG)


@dataclass
class SampleRuleOptions(SamplingOptions):
    """How `nlf sample` draws completions; the defaults are those of the published evaluation."""

    num_generations: int = like(SamplingOptions, "num_generations", 25)
    max_completion_length: int = like(SamplingOptions, LENGTH, OF_A_RUN)
    top_p: float = like(SamplingOptions, "top_p", 0.9)


@dataclass
class EvaluateRuleOptions(TrainSamplingOptions):
    """How `nlf evaluate` draws completions; it has the list guidance_scales in place of one guidance_scale."""

    num_generations: int = like(SamplingOptions, "num_generations", 25)
    max_completion_length: int = like(SamplingOptions, LENGTH, OF_A_RUN)
    top_p: float = like(SamplingOptions, "top_p", 0.9)
    negative_tag: str | None = knob(None, NEGATIVE_TAG)


@dataclass
class EvalSamplingOptions(Options):
    """How evaluation during training draws completions: at temperature 1, as long as rollouts, under the best tag."""

    eval_num_generations: int = knob(25, "Completions of each evaluation prompt.", above=0, short=True)
    eval_top_p: float = knob(
        0.9,
        "In evaluation: sample from the smallest set of tokens whose probabilities sum to this number or more; 1 is off.",
        above=0,
        most=1,
    )


@dataclass
class LocalSamplerOptions(Options):
    """The program that samples, and the knobs of the programs that run on this machine."""

    sampler: Literal["hf", "vllm", "server"] = knob(
        "hf",
        "Program that samples. hf: this process. vllm: vLLM, in a separate process. server: any OpenAI-compatible "
        "completions endpoint. Guidance needs hf.",
    )
    sampler_compile: bool = knob(
        False,
        "hf: decode with torch.compile, and with CUDA graphs on a GPU. The first batch waits for the compiler, and results "
        "change only by rounding.",
    )
    tensor_parallel_size: int = knob(1, "vllm: number of GPUs that share one copy of the model.", above=0)
    gpu_memory_utilization: float = knob(
        0.7, "vllm: share of each GPU's memory that vLLM may take; this process keeps the rest.", above=0, most=1
    )


@dataclass
class RolloutSamplerOptions(LocalSamplerOptions):
    """The program that draws rollouts; evaluation during training samples in the training process."""

    sampler: Literal["hf", "vllm"] = knob(
        "hf",
        "Program that samples rollouts. hf: the training process. vllm: vLLM, in a separate process on the same GPUs, which "
        "ends before training goes on (docs/scaling.md).",
        short=True,
    )
    tensor_parallel_size: int = knob(
        1, "vllm: number of GPUs, and of training processes, that share one vLLM and its copy of the model.", above=0
    )


@dataclass
class SamplerOptions(LocalSamplerOptions):
    """The program that draws the completions of a command."""

    data_parallel_size: int = knob(1, "vllm: number of copies of the model, each on its own GPUs.", above=0)
    sampler_url: str | None = knob(
        None, "server: its address, such as http://localhost:8000/v1. If it needs a key, set OPENAI_API_KEY."
    )
    sampler_model: str | None = knob(
        None,
        "server: the model's name on the server; null is the value of --model. The base model is always requested by its "
        "own name.",
    )
    sampler_concurrency: int = knob(16, "server: most requests that wait for an answer at the same time.", above=0)
    sampler_timeout: float = knob(600.0, "server: most seconds for one request.", above=0, most=DAY)

    def check_together(self) -> None:
        super().check_together()
        if self.sampler != "server":
            return
        if not self.sampler_url:
            raise UserError("sampler_url is missing; give the server's URL, such as http://localhost:8000/v1")
        from nlf.services import checked_url  # here, because httpx2 takes time to load

        checked_url(self.sampler_url, "sampler_url")


def refuse_guidance(sampler: str, scale: float | list[float]) -> None:
    """Raise UserError if a sampler that returns no logits is asked for guidance."""
    if sampler != "hf" and any(scale if isinstance(scale, list) else [scale]):
        raise UserError(
            f"sampler {sampler} cannot be guided: guidance needs the logits after both tags at every step; set "
            "guidance_scale 0, or sampler hf"
        )


def sampling_options(options: Any) -> SamplingOptions:
    """The sampling rule among a larger object's fields. Training has no guidance, so guidance_scale is 0."""
    return among(options, SamplingOptions)


def eval_sampling_options(options: Any) -> SamplingOptions:
    """The sampling rule of evaluation during training, from the settings of a run."""
    return SamplingOptions(
        num_generations=options.eval_num_generations,
        max_completion_length=options.max_completion_length,
        top_p=options.eval_top_p,
    )


def sampler_options(options: Any) -> SamplerOptions:
    """The knobs of the sampler among a larger object's fields."""
    return among(options, SamplerOptions)
