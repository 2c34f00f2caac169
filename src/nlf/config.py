"""Every knob of ours, as plain dataclasses: the command line, the recipes and `ALTConfig` are all made from this page.

Nothing heavy is imported, so `nlf train --help` is quick. `trainer.ALTConfig` joins these classes with transformers'
`TrainingArguments`, whose defaults we change only where `TRAINING_DEFAULTS` says so. Names are TRL's wherever TRL has
the thing. `check` holds the rules that a type cannot say; it quotes the name the person typed.

Departs from the published code: the number of quantiles *is* the number of tags, nothing is filtered (top-k, top-p)
unless asked for, and the coefficients alone choose the objective.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any, Literal

from nlf.errors import UserError
from nlf.method.tags import DEFAULT_TAGS, diagonal

TRAINING_DEFAULTS: dict[str, Any] = {
    "output_dir": "runs/toxicity-embedded",
    "num_train_epochs": 3,  # one epoch is one iteration
    "learning_rate": 5e-4,
    "per_device_train_batch_size": 64,
    "warmup_steps": 5,
    "lr_scheduler_type": "cosine",
    "max_grad_norm": 1.0,
    "adam_epsilon": 1e-8,
    "weight_decay": 0.0,
    "logging_steps": 5,
    "logging_nan_inf_filter": False,  # a NaN loss must be seen
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "report_to": "none",
    "seed": 42,
    "dataloader_num_workers": 0,
    "remove_unused_columns": False,
}


def knob(default: Any, help: str) -> Any:
    """A dataclass field with its line of help; lists are copied for each instance."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass
class ModelOptions:
    """Which model is trained, against which reference, and how it is loaded."""

    model_name_or_path: str = knob(
        "embedded", "The policy's start: 'embedded' (the small model shipped here), a folder, or a hub id."
    )
    model_revision: str = knob("main", "Hub revision of the model: a branch, a tag or a commit.")
    dtype: str = knob("float32", "Type the weights are loaded in: float32, bfloat16, float16 or auto.")
    attn_implementation: str | None = knob(
        None, "Attention: eager, sdpa, flash_attention_2, ...; null lets it choose."
    )
    trust_remote_code: bool = knob(False, "Run Python code that comes with a hub model.")
    ref_model_name_or_path: str | None = knob(
        None, "The frozen reference of the KL terms and of iteration 0; null is the policy's own start."
    )
    use_peft: bool = knob(False, "Train LoRA adapters; the model without them is then the reference, at no memory.")
    lora_r: int = knob(16, "LoRA rank.")
    lora_alpha: int = knob(32, "LoRA scale: updates are multiplied by lora_alpha / lora_r.")
    lora_dropout: float = knob(0.0, "Dropout inside the adapters.")
    lora_target_modules: list[str] | None = knob(None, "Modules that get adapters; null is all linear layers.")
    disable_dropout: bool = knob(True, "Turn the model's dropout off, as the published code in effect did.")

    def __post_init__(self) -> None:
        check(self)


@dataclass
class DataOptions:
    """Where the prompts come from."""

    dataset: str = knob(
        "embedded",
        "Training prompts: 'embedded', a .jsonl, .json, .csv, .parquet or .txt file (also .gz), or a hub id. "
        "Columns beside the prompt reach the reward functions.",
    )
    eval_dataset: str = knob("embedded", "Evaluation prompts, named like dataset; eval_strategy 'no' does without.")
    dataset_prompt_column: str = knob(
        "prompt", "Column of the prompt: text, messages, or RealToxicityPrompts' {'text': ...}."
    )
    dataset_train_split: str = knob("train", "Split of dataset to train on.")
    dataset_test_split: str = knob("test", "Split of eval_dataset to evaluate on.")
    max_prompts: int | None = knob(None, "Use the first so many training prompts; null is all.")
    max_eval_prompts: int | None = knob(40, "Evaluate the first so many prompts during training; null is all.")
    max_prompt_length: int | None = knob(
        None, "Keep the last so many tokens of a longer prompt; null refuses prompts that do not fit the context."
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass
class RewardOptions:
    """What judges a completion: one number each, higher is better."""

    reward_funcs: list[str] = knob(
        ["local"],
        "Reward functions: 'local' (the toxicity scorer shipped here), 'sentiment', 'hf:MODEL_ID#LABEL', or a dotted path "
        "to your own. Keep 'audit' for judging what was trained.",
    )
    reward_weights: list[float] | None = knob(None, "Weight of each reward function in the sum; null is 1 each.")
    reward_normalization: Literal["none", "zscore", "rank"] = knob(
        "none",
        "What is done to each of several rewards before the sum, over the whole pool: nothing, zscore (less the mean, by "
        "the standard deviation) or rank (from -1/2 to 1/2). Evaluation shows them as they are.",
    )


@dataclass
class RemoteOptions:
    """How scorers behind a network are asked; the same for all of them."""

    cache_dir: str | None = knob(
        None, "Folder of the answers' cache, scores.sqlite; null is $NLF_CACHE, or nlf in the user's cache folder."
    )
    replay: bool = knob(False, "Ask nobody: every answer comes from the cache, and one that is missing is an error.")
    rate_limit: float | None = knob(
        None, "Requests a second at most, over all processes on this machine; null is the scorer's own default."
    )
    max_concurrency: int = knob(16, "Requests under way at a time.")
    max_tries: int = knob(8, "Tries of one request before its text has no score: transport, 408, 429, 5xx.")
    max_failures_in_a_row: int = knob(5, "So many texts in a row out of tries stop the run; what is done is kept.")
    request_timeout: float = knob(60.0, "Seconds that one request may take.")

    def __post_init__(self) -> None:
        check(self)


@dataclass
class TagOptions:
    """The words that name the quantiles, best first; of one reward, or of several attributes joined."""

    tags: list[str] = knob(
        list(DEFAULT_TAGS), "One tag for each quantile, best first; their number is the quantiles'."
    )
    tag_template: str = knob("{feedback}<|separator|>{prompt}", "How feedback and prompt are joined.")
    separator: str | None = knob(
        "<|separator|>", "Token added to the vocabulary, started from EOS, never sampled; null adds none."
    )
    tag_tokens: bool = knob(False, "Make every tag one new token, as Quark does, instead of words.")
    attributes: list[dict] | None = knob(
        None,
        "Several rewards, each with its own quantiles and words: a list of {name, reward, tags, quantile_rule}, the last may "
        "be left out. They take the place of reward_funcs and tags.",
    )
    attribute_template: str = knob(", and ", "What joins the tags of several attributes.")
    feedback_sampling: Literal["best", "all"] = knob(
        "best", "Sample prompts under the best of each attribute, or under all combinations in turn."
    )
    max_feedback_length: int = knob(
        64, "Keep the first so many tokens of a sentence that a judge writes, fewer where prompts leave less room."
    )


@dataclass
class SamplingOptions:
    """How completions are drawn; used for training and, with eval_ before each name, for evaluation."""

    num_generations: int = knob(4, "Completions for each prompt.")
    max_completion_length: int = knob(20, "New tokens at most.")
    min_completion_length: int = knob(0, "New tokens at least: EOS is banned before.")
    temperature: float = knob(1.0, "Logits are divided by it; 0 takes the likeliest token.")
    top_p: float = knob(1.0, "Sample from the smallest set of tokens that holds this probability; 1 is off.")
    top_k: int = knob(0, "Sample from this many likeliest tokens; 0 is off.")
    guidance_scale: float = knob(
        0.0,
        "Strength g of (1+g) log p(.|tag) - g log p(.|worst tag), two forward passes; EOS keeps its own probability; "
        "0 is off. "
        "For evaluation: guided rollouts lose the contrast that training needs.",
    )
    negative_tag: str | None = knob(None, "The tag that guidance moves away from; null is the worst.")

    def __post_init__(self) -> None:
        check(self)


@dataclass
class RolloutSamplerOptions:
    """What draws the completions that are trained on; evaluation during training samples in its own process."""

    sampler: Literal["hf", "vllm"] = knob(
        "hf",
        "What samples rollouts: 'hf', the training process; 'vllm', offline vLLM in a process of its own, on the same GPUs, "
        "that ends before training goes on. A server would keep the weights it was started with (docs/scaling.md).",
    )
    sampler_compile: bool = knob(
        False,
        "hf: decode under torch.compile, on a GPU as CUDA graphs; the first batch waits for the compiler. Changes no result, "
        "up to rounding.",
    )
    tensor_parallel_size: int = knob(
        1, "vllm: GPUs that share one copy of the model; where there are several ranks, that many share a vLLM."
    )
    data_parallel_size: int = knob(
        1, "vllm: copies of the model, each on GPUs of its own; where there are several ranks, each has a copy anyway."
    )
    gpu_memory_utilization: float = knob(
        0.7, "vllm: share of each GPU's memory it may take; what this process keeps there needs the rest."
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass
class SamplerOptions(RolloutSamplerOptions):
    """What draws the completions of a command."""

    sampler: Literal["hf", "vllm", "server"] = knob(
        "hf",
        "What samples: 'hf', this process; 'vllm', offline vLLM in a process of its own; 'server', any OpenAI-compatible "
        "completions endpoint. Only hf knows guidance.",
    )
    sampler_url: str | None = knob(
        None, "The server, http://localhost:8000/v1 say; its key, where it needs one, is in OPENAI_API_KEY."
    )
    sampler_model: str | None = knob(
        None, "The server's name of the model; null is the model's own. Others that are compared go by theirs."
    )
    sampler_concurrency: int = knob(16, "Requests to the server under way at a time.")
    sampler_timeout: float = knob(600.0, "Seconds that one request to the server may take.")


EVAL_SAMPLING_DEFAULTS: dict[str, Any] = {"num_generations": 25, "top_p": 0.9}

EvalSamplingOptions = make_dataclass(
    "EvalSamplingOptions",
    [
        (
            f"eval_{f.name}",
            f.type,
            knob(EVAL_SAMPLING_DEFAULTS.get(f.name, f.default), f"In evaluation: {f.metadata['help']}"),
        )
        for f in fields(SamplingOptions)
    ],
    namespace={"__doc__": "SamplingOptions for evaluation.", "__module__": __name__},
)


@dataclass
class LoopOptions:
    """Sample, score, pool, quantize, tag, train: how much of each in an iteration (num_train_epochs of them)."""

    prompts_per_iteration: int | None = knob(512, "Prompts sampled in each iteration; null is all of them.")
    steps_per_iteration: int = knob(40, "Optimizer steps in each iteration.")
    pool_keep: int | None = knob(None, "Train on the rollouts of so many last iterations; null keeps all.")
    quantile_scope: Literal["pool", "prompt"] = knob(
        "pool", "Cut the quantiles over the whole pool, or among the completions of each prompt."
    )
    quantile_rule: Literal["even", "published", "levels"] = knob(
        "even",
        "'published' gives the remainder of N / K to the worst quantile and splits ties by their order; 'levels': the reward "
        "of a judge names the quantile, K-1 the best.",
    )
    quantile_weights: list[float] | None = knob(
        [2.5, 1.0, 1.0, 1.0, 2.5], "Share of each quantile in a step, best first; null draws without regard to them."
    )
    sampling_batch_tokens: int | None = knob(
        None, "Tokens (prompt and completion) sampled in one batch; null suits the device. Changes no result."
    )
    prompts_per_part: int = knob(64, "Prompts in one rollout file: what a killed run may have to sample again.")
    eval_tag: str | None = knob(None, "Tag that evaluation samples under; null is the best.")
    distill: bool = knob(
        False, "At the end, teach a plain model what the guided one writes: `nlf distill`'s defaults."
    )


@dataclass
class ObjectiveOptions:
    """Coefficients of the loss: nll_coef NLL + contrast_coef C + beta KL - entropy_coef H (docs/method.md).

    The published objective is nll_coef 1, contrast_coef 0, beta 0.05.
    """

    nll_coef: float = knob(0.0, "Weight of the negative log likelihood of a completion under its own tag, per token.")
    contrast_coef: float = knob(
        1.0,
        "Weight of -log sigmoid(log p(own tag) - log p(mirror tag)), summed over a completion's tokens; "
        "0 skips the second pass.",
    )
    beta: float = knob(
        2.0,
        "Weight of the KL to the reference, per token, of every pass. The contrast grows with a completion's length "
        "and the KL does not: scale beta with it (the default suits 20 tokens).",
    )
    entropy_coef: float = knob(0.0, "Weight of the entropy bonus, per token.")
    kl_direction: Literal["forward", "reverse"] = knob(
        "forward", "KL(reference || policy), as ALT, or 'reverse': KL(policy || reference), as Quark."
    )
    reference_device: str | None = knob(
        None,
        "Where the frozen reference computes in training: 'cpu', or another GPU, 'cuda:1' say, which leaves memory to the "
        "policy; null is where the policy is. To sample and to evaluate it comes over.",
    )
    adaptive_kl: bool = knob(False, "Steer beta towards target_kl.")
    target_kl: float = knob(3.0, "KL per completion (summed over its tokens) that adaptive_kl aims at.")
    horizon: int = knob(2500, "Completions over which adaptive_kl moves beta.")
    adaptive_entropy: bool = knob(False, "Steer entropy_coef towards target_entropy.")
    target_entropy: float = knob(
        40.0, "Entropy per completion (summed over its tokens) that adaptive_entropy aims at."
    )
    entropy_horizon: int = knob(2500, "Completions over which adaptive_entropy moves entropy_coef.")


@dataclass
class LogOptions:
    """What is shown beside the numbers."""

    log_completions: bool = knob(True, "Show a few evaluated completions in each iteration.")
    num_completions_to_print: int = knob(3, "How many of them.")


# ---- the other commands: the groups of each stand in COMMAND_GROUPS -------------------------------------------------


@dataclass
class LoadOptions:
    """The model of a command."""

    model: str = knob("", "The model: a run folder, any folder of a causal language model, a hub id, or 'embedded'.")
    model_revision: str = knob("main", "Hub revision of the model: a branch, a tag or a commit.")
    dtype: str = knob("float32", "Type the weights are loaded in: float32, bfloat16, float16 or auto.")
    trust_remote_code: bool = knob(False, "Run Python code that comes with a hub model.")


@dataclass
class PromptOptions:
    """The prompts of a command."""

    prompts: list[str] = knob(
        ["embedded"],
        "Prompts: 'embedded', a .jsonl, .json, .csv, .parquet or .txt file (also .gz), or a hub id; several are "
        "kept apart.",
    )
    dataset_prompt_column: str = knob("prompt", "Column of the prompt.")
    dataset_test_split: str = knob("test", "Split of embedded or hub prompts.")
    max_prompts: int | None = knob(None, "Use the first so many prompts of each; null is all.")


@dataclass
class ConditionOptions:
    """The words before the prompts."""

    tag: str = knob("best", "Tag to sample under: 'best', 'middle', 'none' (the bare prompt), or the words of one.")
    tags: list[str] | None = knob(
        None, "Other words for the quantiles, best first, or a tags.json; null is the model's own."
    )


@dataclass
class DrawingOptions:
    """What a sampling command fixes beside the rule."""

    seed: int = knob(0, "Seed of the sampling.")
    sampling_batch_tokens: int | None = knob(
        None, "Tokens (prompt and completion) in one batch; null suits the device. Changes no result."
    )
    prompts_per_part: int = knob(64, "Prompts written at a time: what a killed command may have to sample again.")


@dataclass
class MeasureOptions:
    """What judges completions."""

    reward_funcs: list[str] = knob(
        ["local"],
        "What judges: 'local', 'audit', 'sentiment', 'hf:MODEL_ID#LABEL', or a dotted path to your own reward function.",
    )
    reward_weights: list[float] | None = knob(None, "Weight of each reward function in the sum; null is 1 each.")

    def __post_init__(self) -> None:
        check(self)


@dataclass
class OutputOptions:
    """Where samples go."""

    output_dir: str = knob("", "Folder of generations.jsonl; running again goes on where it stopped.")


@dataclass
class ComparisonOptions:
    """What `nlf evaluate` compares."""

    task: str | None = knob(
        None, "Settings to start from: 'toxicity', 'sentiment', or a YAML file of names on this page; flags override."
    )
    base_model: str | None = knob(
        None, "The model it is compared with, and that KL is measured to; null is the run's own start."
    )
    eval_model: str | None = knob(
        None, "The model that measures perplexity, 'gpt2-xl' or 'embedded' say; null is the base model."
    )
    guidance_scale: list[float] = knob(
        [1.0], "Strengths of tag-contrast guidance to compare, beside none; 0 alone leaves guidance out."
    )
    sweep_tags: bool = knob(False, "Sample under every other tag as well.")
    sweep_prompts: int = knob(40, "Prompts for each of the other tags.")
    reverse_prompts: list[str] | None = knob(
        None, "More prompts, on which the order of the tags is turned round: steered towards the worst."
    )
    threshold: float = knob(0.5, "A completion counts as toxic, or positive, when its score is at least this.")
    output_dir: str | None = knob(None, "Where results.json and generations go; null is MODEL/evaluation.")


@dataclass
class ScoreFileOptions:
    """What `nlf score` scores."""

    path: str = knob("", "A generations file, a folder of them, or any .jsonl, .csv or .parquet with a text column.")
    list: bool = knob(False, "Show every scorer, its attributes, licence and what it needs, and stop.")
    export_cache: str | None = knob(
        None, "Write the answers of remote scorers that are kept to this .jsonl, and stop."
    )
    import_cache: str | None = knob(None, "Take answers of remote scorers from such a .jsonl, and stop.")
    text_column: str = knob("text", "Column of the text, where the file is not one of generations.")
    batch_size: int = knob(64, "Lines scored and written at a time.")


@dataclass
class PerplexityOptions:
    """What `nlf perplexity` measures with."""

    path: str = knob("", "A generations file, or a folder of them.")
    eval_model: str = knob("embedded", "The model that measures: 'embedded', a folder, or a hub id such as gpt2-xl.")
    model_revision: str = knob("main", "Hub revision of eval_model.")
    dtype: str = knob("float32", "Type the weights are loaded in: float32, bfloat16, float16 or auto.")
    trust_remote_code: bool = knob(False, "Run Python code that comes with a hub model.")
    batch_tokens: int | None = knob(
        None, "Tokens (prompt and completion) in one batch; null suits the device. Changes no result."
    )
    published: bool = knob(
        False, "Also print the published number: completions over 1e4 and prompts of one token are left out of it."
    )


@dataclass
class DistillOptions:
    """How a guided policy becomes a plain model."""

    base_model: str | None = knob(None, "The student's start; null is the run's own start.")
    tag: str = knob("middle", "The teacher's tag: 'best', 'middle', or the words of one.")
    negative_tag: str | None = knob(None, "The tag that guidance moves away from; null is the worst.")
    guidance_scale: float | None = knob(
        None, "Strength of the teacher's guidance; null is 8 from the middle tag, 1.5 from any other."
    )
    keep_tags: bool = knob(
        False, "Keep the tags: the student is the model itself, its extremes learn from themselves under guidance."
    )
    prompts: list[str] | None = knob(None, "Prompts the teacher completes; null is the run's training prompts.")
    dataset_prompt_column: str = knob("prompt", "Column of the prompt.")
    dataset_train_split: str = knob("train", "Split of embedded or hub prompts.")
    num_prompts: int = knob(512, "Prompts, drawn by the seed.")
    num_generations: int = knob(4, "Completions for each prompt and tag; with keep_tags they are shared by the tags.")
    max_completion_length: int | None = knob(None, "New tokens at most; null is the run's own.")
    teacher_top_k: int = knob(0, "Cut the teacher to its likeliest tokens, for big vocabularies; 0 is off.")
    max_steps: int = knob(50, "Optimizer steps.")
    per_device_train_batch_size: int = knob(64, "Completions in a step, on each device.")
    gradient_accumulation_steps: int = knob(1, "Micro-batches in a step.")
    learning_rate: float = knob(5e-4, "Highest learning rate; it warms up, then falls to 0 along a cosine.")
    warmup_steps: int = knob(5, "Steps of warm-up.")
    use_peft: bool = knob(False, "Train LoRA adapters, merged into the weights at the end.")
    lora_r: int = knob(16, "LoRA rank.")
    lora_alpha: int = knob(32, "LoRA scale.")
    seed: int = knob(42, "Seed of the samples and of their order.")
    sampling_batch_tokens: int | None = knob(None, "Tokens sampled in one batch; null suits the device.")
    max_eval_prompts: int = knob(40, "Prompts on which teacher and student are shown side by side.")
    output_dir: str | None = knob(None, "The student's folder; null is MODEL/distilled.")


@dataclass
class ReportOptions:
    """What `nlf report` shows."""

    runs: list[str] = knob([], "Run folders, or folders of evaluations; the first is the one that is shown in full.")
    output: str | None = knob(None, "The page to write; null is report.html in the first run.")
    num_samples: int = knob(30, "Prompts whose samples are shown side by side.")
    seed: int = knob(0, "Which prompts those are.")


@dataclass
class ImportOptions:
    """What `nlf import` converts."""

    checkpoint: str = knob("", "A checkpoint of the published code: a .pth file with policy_model in it.")
    base_model: str = knob("gpt2-large", "The model it was trained from: its configuration and tokenizer are used.")
    model_revision: str = knob("main", "Hub revision of base_model.")
    output_dir: str = knob("", "The model folder to write.")
    tags: list[str] | None = knob(None, "Its tags, best first; null is the published five, or Quark's tokens.")


COMMAND_GROUPS: dict[str, dict[str, type]] = {
    "sample": {
        **{"Model": LoadOptions, "Prompts": PromptOptions, "Tags": ConditionOptions},
        **{"Sampling": SamplingOptions, "Sampler": SamplerOptions, "Drawing": DrawingOptions},
        "Output": OutputOptions,
    },
    "score": {"Scoring": ScoreFileOptions, "Judges": MeasureOptions, "Remote rewards": RemoteOptions},
    "perplexity": {"Perplexity": PerplexityOptions},
    "evaluate": {
        **{"Model": LoadOptions, "Prompts": PromptOptions, "Tags": ConditionOptions, "Judges": MeasureOptions},
        **{"Sampling": SamplingOptions, "Sampler": SamplerOptions, "Drawing": DrawingOptions},
        **{"Comparison": ComparisonOptions, "Remote rewards": RemoteOptions},
    },
    "distill": {"Model": LoadOptions, "Distillation": DistillOptions},
    "report": {"Report": ReportOptions},
    "import": {"Import": ImportOptions},
}


OPTION_GROUPS: dict[str, type] = {
    "Model": ModelOptions,
    "Data": DataOptions,
    "Rewards": RewardOptions,
    "Remote rewards": RemoteOptions,
    "Tags": TagOptions,
    "Sampling": SamplingOptions,
    "Sampler": RolloutSamplerOptions,
    "Evaluation sampling": EvalSamplingOptions,
    "Loop": LoopOptions,
    "Objective": ObjectiveOptions,
    "Logging": LogOptions,
}


def sampling_options(options: Any, prefix: str = "") -> SamplingOptions:
    """The sampling options among a larger object's fields; prefix 'eval_' takes those of evaluation."""
    return SamplingOptions(**{f.name: getattr(options, prefix + f.name) for f in fields(SamplingOptions)})


def remote_options(options: Any) -> RemoteOptions:
    """The options of remote rewards among a larger object's fields; the default of one that it has not."""
    return _among(options, RemoteOptions)


def sampler_options(options: Any) -> SamplerOptions:
    """The options of the sampler among a larger object's fields; the default of one that it has not."""
    return _among(options, SamplerOptions)


def _among(options: Any, group: type):
    return group(**{f.name: getattr(options, f.name, f.default) for f in fields(group)})


Rule = tuple[Callable[[Any], bool], str]
POSITIVE: Rule = (lambda v: v > 0, "a number above 0")
NOT_NEGATIVE: Rule = (lambda v: v >= 0, "0 or more")


def one_of(*choices: str) -> Rule:
    return (lambda v: v in choices, "one of " + ", ".join(choices))


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        "max_prompts sweep_prompts num_prompts batch_size batch_tokens num_samples max_eval_prompts max_prompt_length max_feedback_length num_generations max_completion_length "
        "prompts_per_iteration steps_per_iteration pool_keep sampling_batch_tokens prompts_per_part target_kl horizon target_entropy "
        "entropy_horizon lora_r lora_alpha num_train_epochs "
        "rate_limit max_concurrency max_tries max_failures_in_a_row request_timeout "
        "sampler_concurrency sampler_timeout tensor_parallel_size data_parallel_size".split(),
        POSITIVE,
    ),
    **dict.fromkeys(
        "min_completion_length temperature top_k nll_coef contrast_coef beta entropy_coef "
        "num_completions_to_print learning_rate warmup_steps max_grad_norm".split(),
        NOT_NEGATIVE,
    ),
    "guidance_scale": (lambda v: min(v if isinstance(v, list) else [v], default=-1) >= 0, "0 or more"),
    "top_p": (lambda v: 0 < v <= 1, "a number above 0, 1 at most"),
    "lora_dropout": (lambda v: 0 <= v < 1, "a number from 0 to below 1"),
    "gpu_memory_utilization": (lambda v: 0 < v <= 1, "a number above 0, 1 at most"),
    "sampler": one_of("hf", "vllm", "server"),
    "dtype": one_of("float32", "bfloat16", "float16", "auto"),
    "quantile_scope": one_of("pool", "prompt"),
    "quantile_rule": one_of("even", "published", "levels"),
    "reward_normalization": one_of("none", "zscore", "rank"),
    "feedback_sampling": one_of("best", "all"),
    "kl_direction": one_of("forward", "reverse"),
    "reward_funcs": (bool, "at least one reward function"),
    "tags": (
        lambda v: (len(v) >= 2 and len(set(v)) == len(v) and all(v)) or (len(v) == 1 and v[0].endswith(".json")),
        "two or more different tags, best first",
    ),
    "quantile_weights": (lambda v: min(v) >= 0 and sum(v) > 0, "numbers of 0 or more, not all 0"),
}


def check(options: Any) -> None:
    """Raise UserError for the first field of ours whose value makes no sense, or that contradicts another."""
    values = {name: value for name, value in vars(options).items() if value is not None}
    for name, value in values.items():
        holds, expected = RULES.get(name.removeprefix("eval_"), (None, ""))
        if holds and not holds(value):
            raise UserError(f"{name}: {value!r} where {expected} was expected")
    for prefix in ("", "eval_"):
        least, most = values.get(f"{prefix}min_completion_length", 0), values.get(f"{prefix}max_completion_length")
        if most is not None and least > most:
            raise UserError(f"{prefix}min_completion_length ({least}) is above {prefix}max_completion_length ({most})")
    if (sampler := values.get("sampler", "hf")) != "hf":
        refuse_guidance(sampler, values.get("guidance_scale", 0))
        if sampler == "server" and not values.get("sampler_url"):
            raise UserError("sampler server: no sampler_url; give the server's, http://localhost:8000/v1 say")
    for name, counted in (("quantile_weights", "tags"), ("reward_weights", "reward_funcs")):
        if name in values and counted in values and len(values[name]) != len(values[counted]):
            raise UserError(
                f"{name} has {len(values[name])} numbers for {len(values[counted])} {counted}: "
                "give one for each, or null"
            )
    attributes = values.get("attributes") or []
    rules = [values.get("quantile_rule"), *(each.get("quantile_rule") for each in attributes)]
    for rule in {"published", "levels"} & set(rules):
        if values.get("quantile_scope") == "prompt":
            raise UserError(f"quantile_rule {rule} cuts over the whole pool: set quantile_scope pool")
    if (
        values.get("quantile_rule") == "levels"
        and not attributes
        and values.get("reward_normalization", "none") != "none"
    ):
        raise UserError("quantile_rule levels takes the reward as it is: set reward_normalization none")
    if attributes and values.get("tag_tokens"):
        raise UserError(
            "tag_tokens: the words of several attributes are joined, so they are no single tokens; leave it out"
        )
    if values.get("feedback_sampling") == "all" and not attributes:
        raise UserError("feedback_sampling all: there is one list of tags; give attributes, or leave it out")


def refuse_guidance(sampler: str, scale: float | list[float]) -> None:
    """Raise UserError where a sampler that shows no logits is asked for guidance."""
    if any(scale if isinstance(scale, list) else [scale]):
        raise UserError(
            f"sampler {sampler} cannot be guided: guidance needs the logits after both tags at every step; set "
            "guidance_scale 0, or sampler hf"
        )


def join_attributes(options: Any) -> None:
    """Where there are attributes, their rewards are the run's, and its tags the joined ones: best of each … worst of each.

    Raises:
        UserError: an attribute is not whole, or reward_funcs or tags say otherwise.
    """
    if options.attributes is None:
        return
    _check_attributes(options.attributes)
    joined = {
        "reward_funcs": [each["reward"] for each in options.attributes],
        "tags": diagonal([each["tags"] for each in options.attributes], options.attribute_template),
    }
    plain = {"reward_funcs": RewardOptions().reward_funcs, "tags": TagOptions().tags}
    for name, value in joined.items():
        if getattr(options, name) not in (plain[name], value):
            raise UserError(f"{name} {getattr(options, name)}: attributes have their own; leave it out")
        setattr(options, name, value)


ATTRIBUTE = ("name", "reward", "tags", "quantile_rule")


def _check_attributes(attributes: list[dict]) -> None:
    if not attributes:
        raise UserError("attributes: an empty list; give one or more, or null")
    for n, each in enumerate(attributes, 1):
        where = f"attribute {each.get('name', n)!r}"
        missing = [key for key in ATTRIBUTE[:3] if not each.get(key)]
        unknown = [key for key in each if key not in ATTRIBUTE]
        if missing or unknown:
            what = f"no {missing[0]}" if missing else f"unknown key {unknown[0]!r}"
            raise UserError(
                f"{where}: {what}; expected {', '.join(ATTRIBUTE[:3])} and, where it differs, {ATTRIBUTE[3]}"
            )
        tags = each["tags"]
        if not isinstance(tags, list) or not all(isinstance(tag, str) and tag.strip() for tag in tags):
            raise UserError(f"{where}: tags {tags!r} where a list of texts was expected, best first")
        if len(set(tags)) < max(len(tags), 2):
            raise UserError(f"{where}: tags {tags!r} where two or more different ones were expected, best first")
        holds, expected = RULES["quantile_rule"]
        if not holds(each.get("quantile_rule", "even")):
            raise UserError(f"{where}: quantile_rule {each['quantile_rule']!r} where {expected} was expected")
    names = [each["name"] for each in attributes]
    if len(set(names)) < len(names):
        raise UserError(f"attributes {', '.join(map(str, names))}: two of one name; rename one")


# ---- one class for each command -----------------------------------------------------------------------------------


@dataclass
class SampleOptions(
    LoadOptions, PromptOptions, ConditionOptions, SamplingOptions, SamplerOptions, DrawingOptions, OutputOptions
):
    """Everything that `nlf sample` takes."""


@dataclass
class ScoreOptions(ScoreFileOptions, MeasureOptions, RemoteOptions):
    """Everything that `nlf score` takes."""


@dataclass
class EvaluateOptions(
    LoadOptions, PromptOptions, ConditionOptions, MeasureOptions, SamplerOptions, DrawingOptions, ComparisonOptions
):
    """Everything that `nlf evaluate` takes."""

    negative_tag: str | None = None
