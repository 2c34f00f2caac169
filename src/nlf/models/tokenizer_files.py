"""The files of a tokenizer. A tokenizer that training did not change is saved as its files were, byte for byte: writing them
anew would change their form, and leave out files that other programs read, such as `tokenizer.model`.
"""

import shutil
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils import CONFIG_NAME, cached_file

from nlf.data.run_folder import TOKENIZER_FILES

LOADED = "loaded_from"  # the attribute by which a loaded tokenizer keeps the folder of its files, and its state


def remember_files(tokenizer: PreTrainedTokenizerBase, path: str, commit: str | None) -> None:
    """Keep where a tokenizer was loaded from, and the state in which training gets it.

    Args:
        path: A folder or a hub id.
        commit: Of the hub id, whose files are in the cache; None for a folder.
    """
    config = cached_file(path, CONFIG_NAME, revision=commit, local_files_only=True)
    setattr(tokenizer, LOADED, (Path(config or path).parent, _state(tokenizer)))


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a tokenizer into a model's folder: copies of its files, or new files if it is not as it was loaded."""
    source, state = getattr(tokenizer, LOADED, (None, None))
    files = [path for pattern in TOKENIZER_FILES for path in source.glob(pattern)] if source else []
    if not files or state != _state(tokenizer):
        tokenizer.save_pretrained(folder)
        return
    for path in files:
        copy: Any = shutil.copytree if path.is_dir() else shutil.copyfile
        copy(path, folder / path.name)


def _state(tokenizer: PreTrainedTokenizerBase) -> tuple[Any, ...]:
    """What may have changed of a tokenizer: its tokens, the special ones among them, and its chat template."""
    return len(tokenizer), str(tokenizer.special_tokens_map), str(tokenizer.chat_template)
