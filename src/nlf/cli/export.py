"""`nlf export`: write a model as a GGUF file, and a Modelfile for Ollama.

Everything that can be refused is found before the file is begun: the architecture before the weights are loaded, then the
tokenizer, the tag and the chat template. The file is moved into its place when it is whole.
"""

from pathlib import Path
from shlex import quote

from nlf.config import ExportOptions
from nlf.data.files import refuse_other, write_text
from nlf.data.locks import locked_files
from nlf.data.run_folder import model_folder
from nlf.errors import UserError
from nlf.evaluation.systems import chosen_tag, load_for_commands, refuse_unfinished
from nlf.models import ollama
from nlf.models.gguf_export import MARK, check_config, check_quantizer, write_gguf
from nlf.models.gguf_tokens import vocabulary_of
from nlf.models.loading import load_config, loading
from nlf.models.names import MODEL_SOURCES, SUFFIX
from nlf.models.reading import vocabulary_size
from nlf.models.sources import model_path

START = 1000  # characters of a GGUF file that show whether it is ours


def export_command(options: ExportOptions) -> str:
    """Run `nlf export`; returns the lines that serve the model.

    Raises:
        UserError: the model cannot be loaded or has no form in GGUF; a file of another program is in the place; a package is
            missing; or the file cannot be written.
    """
    path = Path(options.gguf)
    if path.suffix != SUFFIX:
        raise UserError(f"gguf {options.gguf}: expected the name of a file that ends in {SUFFIX}")
    check_quantizer(options.quantize)
    _check_architecture(options)
    with locked_files(path):
        refuse_other(path, lambda text: MARK in text, START)
        if options.ollama:
            refuse_other(_modelfile(path), lambda text: text.startswith(ollama.HEAD))
        policy = load_for_commands(options.model, options, device="cpu", digest=False)
        vocabulary = vocabulary_of(policy.tokenizer, vocabulary_size(policy.model))
        tag = chosen_tag(policy, options.tag)
        text = ""
        if options.ollama:
            text = ollama.modelfile(path.name, policy.tokenizer, policy.scheme, tag, vocabulary.adds_bos)
        write_gguf(path, policy, vocabulary, options.quantize)
        if text:
            write_text(_modelfile(path), text)
    return _summary(path, options)


def _check_architecture(options: ExportOptions) -> None:
    """Refuse a model by its configuration alone."""
    folder = model_folder(options.model)
    refuse_unfinished(Path(folder))
    path = model_path(folder)
    source = {} if Path(path).is_dir() else {"revision": options.model_revision}
    with loading(f"cannot load a causal language model from {options.model!r}", MODEL_SOURCES):
        config = load_config(path, trust_remote_code=options.trust_remote_code, **source)
    check_config(config, options.model)


def _modelfile(path: Path) -> Path:
    """The Modelfile beside a GGUF file."""
    return path.with_suffix(".Modelfile")


def _summary(path: Path, options: ExportOptions) -> str:
    """Describe the file, and name the commands that serve it."""
    lines = [
        f"{path}: {options.model} in {options.quantize}, {path.stat().st_size / 1e6:.1f} MB",
        f"next: llama-server -m {quote(str(path))} --port 8080",
    ]
    if options.ollama:
        lines.append(f"  or: ollama create {quote(path.stem)} -f {quote(str(_modelfile(path)))}")
    return "\n".join(lines)
