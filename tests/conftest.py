"""Fixtures shared by all tests: where optional data lies, and the tiny model and tokenizer of `tiny.py`."""

import json
import os
import sys
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("any machine", deadline=None)  # a busy one is slow, not wrong
hypothesis.settings.load_profile("any machine")

REPO = Path(__file__).resolve().parents[1]


def _folder(variable: str, name: str) -> Path:
    folder = Path(os.environ.get(variable) or REPO.parent / "shared" / name)
    if not folder.is_dir():
        pytest.skip(f"needs the folder {folder}; set {variable} to where it is")
    return folder


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Corpora and recorded scores: `$NLF_DATA`, else `../shared/data`, else the test is skipped."""
    return _folder("NLF_DATA", "data")


@pytest.fixture(scope="session")
def parity_dir() -> Path:
    """Numbers of the published implementation: `$NLF_PARITY`, else `../shared/parity`, else the test is skipped."""
    return _folder("NLF_PARITY", "parity")


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """A stand-in for vLLM in this process and in those it starts; what it was asked, as a function."""
    folder = REPO / "tests" / "sampling" / "stand_in"
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *sys.path]))
    monkeypatch.setenv("STAND_IN_LOG", str(tmp_path / "log"))
    yield lambda: [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    sys.modules.pop("vllm", None)


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """A tiny model's folder and a file of prompts, for commands."""
    import tiny

    folder = tmp_path_factory.mktemp("inputs")
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in tiny.PROMPTS))
    return tiny.save(folder / "model"), prompts


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A byte-level BPE of 300 tokens; EOS is `<|endoftext|>`."""
    import tiny

    return tiny.tokenizer()


@pytest.fixture(scope="session")
def tiny_model():
    """A random two-layer GPT-2, shared by the session: copy it before changing it."""
    import tiny

    return tiny.model()
