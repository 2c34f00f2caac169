"""Knobs of the commands beside `nlf train`: the groups by the headings of their help, and one class for each command.

A command's function gets one instance of its class, in which the knobs of all groups stand side by side.
"""

from dataclasses import dataclass
from typing import Literal

from nlf.config.inherited import SEED
from nlf.config.knobs import Options, Rule, knob
from nlf.config.rewards import AT_LEAST_ONE, MeasureOptions, RemoteOptions
from nlf.config.sampling import (
    MOST_GUIDANCE,
    NEGATIVE_TAG,
    EvaluateRuleOptions,
    SamplerOptions,
    SampleRuleOptions,
    refuse_guidance,
)
from nlf.config.tags import TAGS_OR_FILE, VARIABLES
from nlf.config.training import (
    CONFIGURATION,
    DTYPE,
    LORA_RANK,
    LORA_SCALE,
    OTHER_MODELS,
    PROMPT_FILES,
    REVISION,
    STREAMING,
    TRUST,
    Dtype,
)
from nlf.errors import UserError

BATCH_TOKENS = (
    "Most tokens (prompt and completion) in one batch; null: chosen for the device. Results do not depend on it."
)
PROMPT_COLUMN = "Column that holds the prompt."
SCORER_OF_FORM = "The first scorer gives the scores."
INSTEAD = {  # what `nlf score` does in place of adding scores to a file, one at a time
    "serve": "--serve",
    "export_cache": "--export_cache",
    "import_cache": "--import_cache",
    "write_as": "--as",
}
ADDING = {"explain": "--explain", "format": "--format"}  # what it adds beside the scores
SOURCES = Rule(bool, "at least one source of prompts")


@dataclass
class LoadOptions(Options):
    """The model of a command."""

    model: str = knob(
        "", f"The model: a run folder, the folder of any causal language model, {OTHER_MODELS}, or 'embedded'."
    )
    model_revision: str = knob("main", REVISION)
    dtype: Dtype = knob("float32", DTYPE)
    trust_remote_code: bool = knob(False, TRUST)
    chat_template_kwargs: dict | None = knob(
        None,
        "Variables of the chat templates of all models of the command, such as '{\"enable_thinking\": false}'; null is the "
        "run's.",
        rule=VARIABLES,
    )


@dataclass
class TeacherOptions(LoadOptions):
    """The model that `nlf distill` takes."""

    model: str = knob(
        "",
        "The teacher: a run folder, or any model, which needs --base_model as well. A model without tags gives a student "
        "that has them.",
    )


@dataclass
class PromptOptions(Options):
    """The prompts of a command."""

    prompts: list[str] | None = knob(
        None,
        f"Prompts: {PROMPT_FILES}. Each source gets its own results. Null is the run's evaluation prompts; 'embedded' for a "
        "model that is no run.",
        rule=SOURCES,
    )
    dataset_prompt_column: str = knob("prompt", PROMPT_COLUMN)
    dataset_config: str | None = knob(None, f"{CONFIGURATION} in `prompts`.")
    dataset_test_split: str = knob("test", "Split of embedded or hub prompts.")
    dataset_streaming: bool = knob(False, STREAMING)
    max_prompts: int | None = knob(
        None, "Number of prompts of each source, taken from the start; null is all.", above=0
    )


@dataclass
class ConditionOptions(Options):
    """The tag before the prompts."""

    tag: str = knob("best", "Tag to sample under: 'best', 'middle', 'none' (the bare prompt), or the words of a tag.")
    tags: list[str] | None = knob(
        None,
        "Tags to use in place of the model's own, best first, or the path of a tags.json; null is the model's own.",
        rule=TAGS_OR_FILE,
    )


@dataclass
class DrawingOptions(Options):
    """The seed and the batches of a command that samples."""

    seed: int = knob(0, "Seed of the sampling.", rule=SEED)
    sampling_batch_tokens: int | None = knob(None, BATCH_TOKENS, above=0)
    prompts_per_part: int = knob(
        64, "Prompts whose samples are written together. A killed command samples at most these again.", above=0
    )


@dataclass
class OutputOptions(Options):
    """The folder of the samples."""

    output_dir: str = knob("", "Folder of generations.jsonl.")


@dataclass
class ComparisonOptions(Options):
    """The models and prompts that `nlf evaluate` compares."""

    task: str | None = knob(
        None,
        "Values of knobs: 'toxicity', 'sentiment', or a YAML file of the flags on this page. Flags override them.",
    )
    base_model: str | None = knob(
        None, "The model to compare with, also for the KL. Null is the model that the run started from."
    )
    eval_model: str | None = knob(
        None, "The model that measures perplexity, such as 'gpt2-xl' or 'embedded'; null is the base model."
    )
    guidance_scales: list[float] = knob(
        [1.0],
        "Sample without guidance and with each of these strengths. A strength is transformers' guidance_scale minus 1. "
        "Give only 0 to sample without guidance.",
        least=0,
        most=MOST_GUIDANCE,
    )
    sweep_tags: bool = knob(False, "Also sample under every other tag.")
    sweep_prompts: int = knob(40, "Number of prompts for each other tag.", above=0)
    reverse_prompts: list[str] | None = knob(
        None, "Prompts that are sampled with the worst tag first: 'best' then means the worst."
    )
    prompts_by: str | None = knob(
        None, "Column of the prompts, such as a BOLD file's 'group': each of its values gets its own results."
    )
    format: Literal["rtp", "quark", "harness"] | None = knob(
        None,
        "Also write the generations in the form of RealToxicityPrompts or Quark, or the results in that of "
        f"lm-evaluation-harness. {SCORER_OF_FORM}",
    )
    threshold: float = knob(0.5, "A completion counts as toxic if its toxicity is at least this.", least=0, most=1)
    output_dir: str | None = knob(None, "Folder of results.json and of the generations; null is MODEL/evaluation.")


@dataclass
class ScoreFileOptions(Options):
    """The texts that `nlf score` scores."""

    path: str = knob(
        "",
        "A generations file of `nlf sample`, `nlf evaluate`, RealToxicityPrompts, DExperts or Quark, a folder of ours, or any "
        ".jsonl, .csv, .tsv or .parquet file with a text column.",
    )
    format: Literal["rtp", "quark"] | None = knob(
        None, f"Also write the generations in the form of RealToxicityPrompts or Quark. {SCORER_OF_FORM}"
    )
    list: bool = knob(False, "Show every scorer with its attributes, its licence and what it needs, then stop.")
    export_cache: str | None = knob(None, "Write the cached answers of remote scorers to this .jsonl file, then stop.")
    import_cache: str | None = knob(None, "Add the answers in such a file to the cache, then stop.")
    text_column: str = knob("text", "Column that holds the text, in a file that is not a generations file.")
    explain: bool = knob(
        False,
        "Also write the share of each word in each score, and show the words that raise toxicity (or what the scorer measures) "
        "most. A scorer that cannot explain is refused.",
    )
    batch_size: int = knob(64, "Number of lines that are scored and written together.", above=0)
    write_as: str | None = knob(
        None,
        "Also written --as. 'perspective': leave the file as it is, and write the JSON of Google's Perspective API for each text, one "
        "line each, to another file.",
        rule=Rule("perspective".__eq__, "'perspective'"),
    )
    output: str | None = knob(None, "File of these answers; null is FILE.perspective.jsonl.")


@dataclass
class ServerOptions(Options):
    """The server of `nlf score --serve`."""

    serve: bool = knob(
        False, "Score no file, but answer requests in the protocol of Google's Perspective API, until Ctrl-C."
    )
    host: str = knob("127.0.0.1", "Address of the server; 0.0.0.0 lets other machines reach it.")
    port: int = knob(8004, "Port of the server; 0 is any free port.", least=0, most=65_535)
    queries_per_second: float | None = knob(
        None,
        "Most comments that the server takes per second, from all clients together; null is no limit.",
        least=0.001,
    )


@dataclass
class PerplexityOptions(Options):
    """Everything that `nlf perplexity` takes."""

    path: str = knob("", "A generations file of `nlf sample` or `nlf evaluate`, or a folder of them.")
    eval_model: str = knob("embedded", f"The model that measures: 'embedded', a folder, or {OTHER_MODELS}.")
    model_revision: str = knob("main", "Hub revision of eval_model.")
    dtype: Dtype = knob("float32", DTYPE)
    trust_remote_code: bool = knob(False, TRUST)
    chat_template_kwargs: dict | None = knob(
        None, "Variables of eval_model's chat template, for prompts that are conversations.", rule=VARIABLES
    )
    batch_tokens: int | None = knob(None, BATCH_TOKENS, above=0)
    published: bool = knob(
        False,
        "Also print the published number, which leaves out perplexities of 1e4 or more, empty completions and prompts of one "
        "token.",
    )


@dataclass
class StudentOptions(Options):
    """How a guided policy becomes a plain model, and a model without tags one with tags."""

    base_model: str | None = knob(
        None, "The model that becomes the student; null is the model that the run started from."
    )
    tag: str | None = knob(
        None,
        "Tag of the teacher: 'best', 'middle', or the words of a tag. Null is 'best' for a model trained by credit, else "
        "'middle'.",
    )
    negative_tag: str | None = knob(None, NEGATIVE_TAG)
    guidance_scale: float | None = knob(
        None,
        "Strength of the teacher's guidance: transformers' guidance_scale minus 1. Null is 1 for a model trained by credit, "
        "else 8 from the middle tag; it is 1.5 from any other tag, and with --keep_tags. Of a model without tags, how far the "
        "best tag goes beyond it, seen from its base: null is 0.5.",
        least=0,
        most=MOST_GUIDANCE,
    )
    keep_tags: bool = knob(
        False,
        "Keep the tags. The student starts as the policy itself. Under the best and the worst tag it learns the guided "
        "distribution; under the other tags it keeps the distribution that it has.",
    )
    tags: list[str] | None = knob(
        None,
        "Tags that the student of a model without tags gets, best first; null is the run's, or the words of its reward.",
    )
    prompts: list[str] | None = knob(
        None,
        f"Prompts that the teacher completes: {PROMPT_FILES}. Null is the run's training prompts.",
        rule=SOURCES,
    )
    dataset_prompt_column: str = knob("prompt", PROMPT_COLUMN)
    dataset_config: str | None = knob(None, f"{CONFIGURATION} in `prompts`.")
    dataset_train_split: str = knob("train", "Split of embedded or hub prompts.")
    dataset_streaming: bool = knob(False, STREAMING)
    reward_funcs: list[str] | None = knob(
        None, "Scorers of the table that compares base, teacher and student; null is the run's rewards and 'audit'."
    )
    num_prompts: int = knob(512, "Number of prompts that the teacher completes, drawn by the seed.", above=0)
    num_generations: int = knob(
        4, "Completions of each prompt. With --keep_tags, this number is divided among the tags.", above=0
    )
    max_completion_length: int | None = knob(
        None, "Most new tokens of a completion; null is the run's max_completion_length.", above=0
    )
    teacher_top_k: int = knob(
        0,
        "Set the teacher's probability of all but this number of most likely tokens to 0; 0 keeps all tokens.",
        least=0,
    )
    max_steps: int | None = knob(None, "Optimizer steps; null is 50, and 100 where the student gets tags.", above=0)
    per_device_train_batch_size: int = knob(64, "Completions in a micro-batch, on each device.", above=0)
    gradient_accumulation_steps: int = knob(1, "Micro-batches in a step.", above=0)
    learning_rate: float | None = knob(
        None,
        "Highest learning rate. It rises during the warm-up, then falls to 0 along a cosine. Null is 5e-4, and follows the "
        "model's size where the student gets tags.",
        least=0,
    )
    warmup_steps: int = knob(5, "Steps of warm-up.", least=0)
    use_peft: bool = knob(False, "Train LoRA adapters, and merge them into the weights at the end.")
    lora_r: int = knob(16, LORA_RANK, above=0)
    lora_alpha: int = knob(32, LORA_SCALE, above=0)
    seed: int = knob(42, "Seed of the samples and of their order.", rule=SEED)
    sampling_batch_tokens: int | None = knob(None, BATCH_TOKENS, above=0)
    max_eval_prompts: int = knob(
        40, "Number of evaluation prompts on which base, teacher and student are compared.", above=0
    )
    output_dir: str | None = knob(
        None, "Folder of the student; null is MODEL/distilled, and MODEL/dial where it gets tags."
    )


@dataclass
class ComparisonScorerOptions(MeasureOptions):
    """The scorers of `nlf evaluate`."""

    reward_funcs: list[str] | None = knob(  # type: ignore[assignment]  # null is the run's own
        None,
        "Scorers: 'local', 'audit', 'sentiment', 'hf:MODEL_ID#LABEL', or a dotted path to your own reward function. Null is "
        "the run's own rewards, and 'audit' beside them; 'local' for a model that is no run.",
        rule=AT_LEAST_ONE,
    )


@dataclass
class ReportOptions(Options):
    """Everything that `nlf report` takes."""

    runs: list[str] = knob([], "Run folders, or folders of evaluations. The page shows the first run in full.")
    output: str | None = knob(None, "File of the page; null is report.html in the folder of the first run.")
    num_samples: int = knob(30, "Prompts whose samples are shown side by side.", above=0)
    seed: int = knob(0, "Seed that draws these prompts.", rule=SEED)


@dataclass
class FileOptions(Options):
    """The file that `nlf export` writes."""

    gguf: str = knob("", "The GGUF file to write, for llama.cpp and Ollama.")
    quantize: Literal["f16", "bf16", "q8_0", "q4_k_m"] = knob(
        "f16", "Type of the matrices in it. 'q4_k_m' needs the package llama-cpp-python."
    )
    ollama: bool = knob(
        False, "Also write a Modelfile for `ollama create`, beside the file: NAME.Modelfile for NAME.gguf."
    )
    tag: str = knob(
        "best",
        "Tag that the Modelfile puts before every prompt: 'best', 'middle', 'none' (the bare prompt), or the words of a tag.",
    )


@dataclass
class ExportedOptions(LoadOptions):
    """The model that `nlf export` takes."""

    dtype: Dtype = knob("auto", DTYPE)


@dataclass
class FetchOptions(Options):
    """Everything that `nlf fetch` takes."""

    name: str = knob("", "The model: 'smollm2' (135 M parameters, Apache-2.0) or 'gemma3-270m' (Gemma's terms).")


@dataclass
class ImportOptions(Options):
    """Everything that `nlf import` takes."""

    checkpoint: str = knob("", "A checkpoint of the published code: a .pth file that holds policy_model.")
    base_model: str = knob(
        "gpt2-large", "The model that the checkpoint was trained from. It gives the configuration and the tokenizer."
    )
    model_revision: str = knob("main", "Hub revision of base_model.")
    output_dir: str = knob("", "The model folder to write.")
    tags: list[str] | None = knob(
        None, "Tags of the checkpoint, best first; null is the five published tags, or Quark's tokens."
    )


# ---- one class for each command: a dataclass lists the fields of its last base first -----------------------------


@dataclass
class SampleOptions(
    OutputOptions, DrawingOptions, SamplerOptions, SampleRuleOptions, ConditionOptions, PromptOptions, LoadOptions
):
    """Everything that `nlf sample` takes."""

    def check_together(self) -> None:
        super().check_together()
        refuse_guidance(self.sampler, self.guidance_scale)


@dataclass
class ScoreOptions(RemoteOptions, ServerOptions, MeasureOptions, ScoreFileOptions):
    """Everything that `nlf score` takes."""

    def check_together(self) -> None:
        super().check_together()
        if self.list:  # shows the scorers, whatever else is given
            return
        first, *others = [flag for name, flag in INSTEAD.items() if getattr(self, name)] or [""]
        takes_no_file = first not in ("", INSTEAD["write_as"])
        others += [flag for name, flag in ADDING.items() if first and getattr(self, name)]
        others += ["the file"] if takes_no_file and self.path else []
        if others:
            raise UserError(
                f"{first} adds no scores to a file, so {others[0]} does not go with it; leave out {others[0]}, or {first}"
            )
        if self.output and not self.write_as:
            raise UserError("output: it is the file of --as perspective; without it, scores are written into the file")


@dataclass
class EvaluateOptions(
    RemoteOptions,
    ComparisonOptions,
    DrawingOptions,
    SamplerOptions,
    EvaluateRuleOptions,
    ComparisonScorerOptions,
    ConditionOptions,
    PromptOptions,
    LoadOptions,
):
    """Everything that `nlf evaluate` takes."""

    def check_together(self) -> None:
        super().check_together()
        refuse_guidance(self.sampler, self.guidance_scales)


@dataclass
class ExportOptions(FileOptions, ExportedOptions):
    """Everything that `nlf export` takes."""


@dataclass
class DistillOptions(StudentOptions, TeacherOptions):
    """Everything that `nlf distill` takes."""


COMMAND_OPTIONS: dict[str, type[Options]] = {
    "sample": SampleOptions,
    "score": ScoreOptions,
    "perplexity": PerplexityOptions,
    "evaluate": EvaluateOptions,
    "distill": DistillOptions,
    "report": ReportOptions,
    "import": ImportOptions,
    "export": ExportOptions,
    "fetch": FetchOptions,
}
COMMAND_GROUPS: dict[str, dict[str, type[Options]]] = {
    "sample": {
        **{"Model": LoadOptions, "Prompts": PromptOptions, "Tags": ConditionOptions},
        **{"Sampling": SampleRuleOptions, "Sampler": SamplerOptions, "Seed and batches": DrawingOptions},
        "Output": OutputOptions,
    },
    "score": {
        **{"Scoring": ScoreFileOptions, "Scorers": MeasureOptions},
        **{"Server": ServerOptions, "Remote scorers": RemoteOptions},
    },
    "perplexity": {"Perplexity": PerplexityOptions},
    "evaluate": {
        **{"Model": LoadOptions, "Comparison": ComparisonOptions, "Prompts": PromptOptions, "Tags": ConditionOptions},
        **{"Scorers": ComparisonScorerOptions, "Remote scorers": RemoteOptions, "Sampling": EvaluateRuleOptions},
        **{"Sampler": SamplerOptions, "Seed and batches": DrawingOptions},
    },
    "distill": {"Model": TeacherOptions, "Distillation": StudentOptions},
    "report": {"Report": ReportOptions},
    "import": {"Import": ImportOptions},
    "export": {"Model": ExportedOptions, "File": FileOptions},
    "fetch": {"Fetch": FetchOptions},
}
