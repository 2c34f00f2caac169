"""Knobs of a training run, by the headings of `nlf train --help`."""

from dataclasses import dataclass
from typing import Literal

from nlf.config.feedback import FeedbackOptions
from nlf.config.inherited import check_inherited
from nlf.config.knobs import FollowingList, Options, Rule, knob
from nlf.config.objective import fill_in, following
from nlf.config.rewards import RewardOptions, TrainRemoteOptions, check_one_each
from nlf.config.sampling import EvalSamplingOptions, RolloutSamplerOptions, TrainSamplingOptions
from nlf.config.tags import ChatOptions, QuantileRule, TagOptions, attributes_of, join_attributes
from nlf.errors import UserError

Dtype = Literal["float32", "bfloat16", "float16", "auto"]
DTYPE = "Type in which the weights are loaded; auto is the type in which they are stored."
REVISION = "Hub revision of the model: a branch, a tag or a commit."
TRUST = "Run Python code that comes with a hub model."
PROMPT_FILES = "'embedded', a .jsonl, .json, .csv, .tsv, .parquet or .txt file (also .gz), or a hub id"
OTHER_MODELS = "a .gguf file, a hub id, or a name of `nlf fetch`"
CONFIGURATION = "Configuration (subset) of the hub data set"
STREAMING = "Read hub prompts as a stream, which downloads no more rows than max_prompts asks for."
LORA_RANK = "LoRA rank."
LORA_SCALE = "LoRA scale: updates are multiplied by lora_alpha / lora_r."


@dataclass
class ModelOptions(Options):
    """The model that is trained, its reference, and how both are loaded."""

    model_name_or_path: str = knob(
        "embedded",
        f"The model to train: 'embedded' (a small model inside this package), a folder, or {OTHER_MODELS}.",
        short=True,
    )
    model_revision: str = knob("main", REVISION)
    dtype: Dtype = knob("float32", DTYPE, short=True)
    attn_implementation: str | None = knob(
        None, "Attention kernel: eager, sdpa, flash_attention_2, …; null lets transformers choose."
    )
    trust_remote_code: bool = knob(False, TRUST)
    ref_model_name_or_path: str | None = knob(
        None,
        "The reference, a frozen model: iteration 0 samples it, and the KL compares the policy with it. Null is the policy "
        "before training.",
    )
    use_peft: bool = knob(
        False,
        "Train LoRA adapters. The reference is the model with the adapters off, so no copy of it is needed.",
        short=True,
    )
    load_in_4bit: bool = knob(
        False,
        "Hold the model's linear layers in 4 bits (NF4) and train adapters on them; needs use_peft, bitsandbytes and a GPU.",
    )
    load_in_8bit: bool = knob(False, "The same in 8 bits.")
    lora_r: int = knob(16, LORA_RANK, above=0)
    lora_alpha: int = knob(32, LORA_SCALE, above=0)
    lora_target_modules: list[str] | None = knob(
        None, "Modules that get adapters; null is every linear layer.", rule=Rule(bool, "at least one name")
    )
    disable_dropout: bool = knob(
        True, "Turn off the model's dropout; in the published code, dropout never acts either."
    )

    @property
    def bits(self) -> int | None:
        """The bits in which linear layers are held; None for all of them."""
        return 4 if self.load_in_4bit else 8 if self.load_in_8bit else None

    def check_together(self) -> None:
        super().check_together()
        if self.load_in_4bit and self.load_in_8bit:
            raise UserError("load_in_4bit and load_in_8bit exclude each other; leave one of them out")
        if self.bits and not self.use_peft:
            raise UserError(
                f"load_in_{self.bits}bit: weights of {self.bits} bits cannot be trained; add use_peft, which trains adapters on "
                "them, or leave it out"
            )


@dataclass
class DataOptions(Options):
    """The prompts of a run."""

    dataset_name: str = knob(
        "embedded",
        f"Training prompts: {PROMPT_FILES}. The reward functions get the other columns. Also written --dataset.",
        short=True,
    )
    eval_dataset: str = knob(
        "embedded",
        "Evaluation prompts, in the same forms as --dataset_name. `--eval_strategy no` turns evaluation off.",
        short=True,
    )
    dataset_prompt_column: str = knob(
        "prompt",
        "Column that holds the prompt: text, a list of messages, or {'text': ...} as in RealToxicityPrompts.",
        short=True,
    )
    dataset_config: str | None = knob(
        None, f"{CONFIGURATION} dataset_name, and of eval_dataset where it is the same data set."
    )
    dataset_train_split: str = knob("train", "Split to train on, for embedded or hub prompts.")
    dataset_test_split: str = knob("test", "Split to evaluate on, for embedded or hub prompts.")
    dataset_streaming: bool = knob(False, STREAMING)
    max_prompts: int | None = knob(
        None, "Number of training prompts, taken from the start; null is all.", above=0, short=True
    )
    max_eval_prompts: int | None = knob(
        40, "Number of evaluation prompts during training, taken from the start; null is all.", above=0
    )
    max_prompt_length: int | None = knob(
        None,
        "Most tokens of a prompt; a longer text loses its first tokens, a longer conversation its oldest turns. Null: a prompt "
        "that does not fit the context is an error.",
        above=0,
        short=True,
    )

    def configuration_of(self, source: str) -> str | None:
        """`dataset_config` for the data set that it belongs to; None for another source."""
        return self.dataset_config if source == self.dataset_name else None


def _are_weights(numbers: list[float]) -> bool:
    return all(n >= 0 for n in numbers) and any(numbers)


def _outer_weights(quantiles: int) -> list[float]:
    """The default weights of this number of quantiles: the best and the worst quantile come more often."""
    return [2.5, *[1.0] * (quantiles - 2), 2.5]


@dataclass
class LoopOptions(Options):
    """The size of an iteration (sample, score, pool, quantize, tag, train); num_train_epochs is their number."""

    prompts_per_iteration: int | None = knob(
        following("prompts_per_iteration"),
        "Prompts sampled in each iteration; null is all of them.",
        above=0,
        short=True,
    )
    steps_per_iteration: int = knob(
        following("steps_per_iteration"), "Optimizer steps in each iteration.", above=0, short=True
    )
    pool_keep: int | None = knob(
        None, "Keep the rollouts of this number of latest iterations in the pool; null keeps all.", above=0, short=True
    )
    quantile_scope: Literal["pool", "prompt"] = knob(
        "pool", "pool: cut the quantiles over the whole pool. prompt: cut them among the completions of each prompt."
    )
    quantile_rule: QuantileRule = knob(
        "even",
        "even: quantiles of equal size; equal rewards share a quantile. published: equal rewards are split by their order "
        "in the pool, and the worst quantile takes the remainder of N / K. levels: the reward is a whole number r from 0 "
        "(the worst) to K-1 and means quantile K-1-r; quantile 0 is the best.",
    )
    quantile_weights: list[float] | None = knob(
        FollowingList(_outer_weights(5)),
        "Each step draws rollouts of each quantile in proportion to these weights, best first. The default is 2.5 for the "
        "best and the worst tag and 1 for the tags between. Null ignores quantiles and draws all scored rollouts equally "
        "often.",
        rule=Rule(_are_weights, "numbers of 0 or more, not all 0"),
        short=True,
    )
    prompts_per_part: int = knob(
        64, "Prompts in one rollout file; a killed run samples at most one file again.", above=0
    )
    plain: Literal["false", "true", "only"] = knob(
        "false",
        "true: after the model with tags, train a plain model, which needs no tag, from the same start, into the folder "
        "plain in output_dir. only: train nothing else. A plain model is trained by credit.",
        short=True,
    )
    distill: bool = knob(
        False,
        "After training, do what `nlf distill` does: a run with tags teaches a plain model, a plain run (plain only) a model "
        "with tags.",
        short=True,
    )


@dataclass
class ObjectiveOptions(Options):
    """Coefficients of the loss: nll_coef NLL + contrast_coef C + credit_coef A + beta KL - entropy_coef H (docs/method.md).

    The published objective is nll_coef 1, beta 0.05.
    """

    nll_coef: float = knob(
        following("nll_coef"),
        "Weight of the NLL, the negative log likelihood per token of a completion under its own tag.",
        least=0,
        short=True,
    )
    contrast_coef: float = knob(
        following("contrast_coef"),
        "Weight of the contrast, -log sigmoid(log p(x|own tag) - log p(x|mirror tag)) for a completion x without its EOS. "
        "The mirror tag of quantile k is the tag of quantile K-1-k. 0 saves a forward pass.",
        least=0,
        short=True,
    )
    credit_coef: float = knob(
        following("credit_coef"),
        "Weight of the credit objective, per token: each token is trained by what it earned of the reward. Attributes, judges "
        "and quantile_rule levels have no credit by default.",
        least=0,
        short=True,
    )
    credit: Literal["auto", "prefix", "completion"] = knob(
        "auto",
        "How a completion's reward becomes the credit of its tokens. prefix: by the rewards of its prefixes. completion: every "
        "token gets the reward less the mean of the prompt's other completions. auto: prefix for rewards that can score prefixes.",
    )
    credit_lambda: float = knob(
        0.5, "How far a token's credit looks ahead. 0: to the next scored prefix. 1: to the end.", least=0, most=1
    )
    beta: float | None = knob(
        following("beta"),
        "Weight of the KL to the reference, per token; null with kl_budget. The contrast grows with the length of completions "
        "and the KL per token does not, so raise beta with the length; with the contrast, 2 suits 20 tokens.",
        least=0,
        short=True,
    )
    entropy_coef: float = knob(
        0.0,
        "Weight of the entropy bonus, per token. Below 0 entropy is a cost: completions get likelier under the reference, and "
        "somewhat more alike; -0.01 keeps the embedded model's perplexity.",
        least=-1,
        short=True,
    )
    kl_direction: Literal["forward", "reverse"] = knob(
        "forward", "forward: KL(reference || policy), as ALT; reverse: KL(policy || reference), as Quark."
    )
    reference_device: str | None = knob(
        None,
        "Device of the reference during training: 'cpu', or another GPU such as 'cuda:1', to leave memory to the policy. "
        "Null is the policy's device.",
    )
    kl_budget: float | None = knob(
        following("kl_budget"),
        "Change the weight of the KL after each step, so that the KL approaches this number of nats per token; the weight "
        "starts at 0.1 / kl_budget. With beta or adaptive_kl there is no budget.",
        above=0,
        short=True,
    )
    adaptive_kl: bool = knob(False, "Change beta after each step, so that the KL approaches target_kl.")
    target_kl: float = knob(
        3.0, "Target of adaptive_kl: the KL of a completion, summed over its tokens, in nats.", above=0
    )
    target_entropy: float | None = knob(
        None,
        "Change entropy_coef after each step, so that the entropy of a completion, summed over its tokens, approaches this "
        "number of nats. Null keeps entropy_coef.",
        above=0,
    )
    horizon: int = knob(
        2500,
        "Completions over which adaptive_kl or target_entropy changes its coefficient by about a fifth at most.",
        above=0,
    )


@dataclass
class LogOptions(Options):
    """Completions in the log and in trackers."""

    log_completions: bool = knob(
        False,
        "Show the completions of each iteration and each evaluation as a table in wandb, trackio and tensorboard; they may "
        "hold offensive language.",
    )
    num_completions_to_print: int = knob(
        0, "Completions that each evaluation logs; they may hold offensive language.", least=0
    )


OPTION_GROUPS: dict[str, type[Options]] = {
    "Model": ModelOptions,
    "Data": DataOptions,
    "Logged feedback": FeedbackOptions,
    "Rewards": RewardOptions,
    "Remote rewards": TrainRemoteOptions,
    "Tags": TagOptions,
    "Conversations": ChatOptions,
    "Sampling": TrainSamplingOptions,
    "Sampler": RolloutSamplerOptions,
    "Evaluation": EvalSamplingOptions,
    "Loop": LoopOptions,
    "Objective": ObjectiveOptions,
    "Logging": LogOptions,
}


@dataclass
class RunOptions(
    FeedbackOptions,
    RewardOptions,
    TrainRemoteOptions,
    TagOptions,
    ChatOptions,
    TrainSamplingOptions,
    RolloutSamplerOptions,
    EvalSamplingOptions,
    LoopOptions,
    ObjectiveOptions,
    LogOptions,
):
    """Every knob that the trainer takes: all groups of a run except Model and Data."""

    def complete(self) -> None:
        super().complete()
        join_attributes(self)
        if self.tags and isinstance(self.quantile_weights, FollowingList):  # else the reward chooses the tags later
            self.quantile_weights = _outer_weights(len(self.tags))
        fill_in(self)

    def check_together(self) -> None:
        super().check_together()
        check_inherited(vars(self))
        if self.tags:
            check_one_each("quantile_weights", self.quantile_weights, "tags", self.tags)
        attributes = attributes_of(self.attributes or [])
        rules = {self.quantile_rule, *(attribute.quantile_rule for attribute in attributes)}
        for rule in ("published", "levels"):
            if rule in rules and self.quantile_scope == "prompt":
                raise UserError(f"quantile_rule {rule} cuts over the whole pool: set quantile_scope pool")
        if self.target_entropy is not None and self.entropy_coef < 0:
            raise UserError(
                "target_entropy changes an entropy bonus: set entropy_coef above 0, or target_entropy null"
            )
        if self.kl_budget is not None and self.adaptive_kl:
            raise UserError("kl_budget and adaptive_kl both change beta: set adaptive_kl false, or kl_budget null")
        if self.kl_budget is not None and self.beta is not None:
            raise UserError(
                f"kl_budget {self.kl_budget:g} and beta {self.beta:g}: a budget chooses the weight of the KL by itself; leave "
                "one of them out"
            )
        if self.quantile_rule == "levels" and not attributes and self.reward_normalization != "none":
            raise UserError("quantile_rule levels takes the reward as it is: set reward_normalization none")
        self._check_plain()
        self._check_logged()

    def _check_plain(self) -> None:
        """Check that a plain model can be trained, if one is asked for: NLL and contrast train tags, and it has none."""
        if self.plain == "false":
            return
        if not self.credit_coef:
            raise UserError(
                f"plain {self.plain}: a plain model has no tags, so it is trained by credit alone, and credit_coef is 0; "
                "set credit_coef 1, or plain false"
            )

    def _check_logged(self) -> None:
        """Check that logged feedback can be trained on: it has no credit, and another policy wrote it."""
        if self.feedback and self.plain != "false":
            raise UserError(
                "plain: a plain model learns from its own completions, and feedback holds those of others; train with tags, "
                "then run `nlf distill`, or leave feedback out"
            )
        if self.feedback and self.credit_coef:
            raise UserError(
                "credit_coef: logged completions have no credit, which needs the scores of their prefixes; leave it out, "
                "contrast_coef 1 is the objective of logged feedback"
            )


@dataclass
class TrainOptions(ModelOptions, DataOptions, RunOptions):
    """Every knob of `nlf train` besides those of TrainingArguments."""
