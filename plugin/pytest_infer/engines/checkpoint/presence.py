"""Whether a model folder's files are all there, and are the files themselves: seen before anything is loaded."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from pytest_infer import untrusted
from pytest_infer.engines.checkpoint import hashes
from pytest_infer.errors import ModelError

SMALL = (".json", ".model", ".txt", ".tiktoken", ".jinja", ".py")
"""The kinds of files that are read beside the weights."""
_VOCABULARY = re.compile(r"vocab|tokenizer(?!_config)|merges|spiece|sentencepiece|tekken|tiktoken|\.model$")


def check_pointers(folder: Path) -> None:
    """Raise ModelError where git-lfs has left a pointer in place of a file that a load would read."""
    small = [path for path in folder.iterdir() if path.suffix in SMALL]
    found = sorted({path.name for path in (*hashes.files(folder), *small) if untrusted.is_pointer(path)})
    if found:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise ModelError(
            f"{folder}: {found[0]}{more}: a pointer of git-lfs and not the file: run git lfs pull in that folder"
        )


def check_weights(folder: Path) -> None:
    """Raise ModelError where the folder lacks weights, one of several files, or the package that reads an adapter."""
    files = hashes.files(folder)
    if not files:
        raise ModelError(f"{folder}: holds no weights (model.safetensors, pytorch_model.bin, or several by an index)")
    missing = [path.name for path in files if not untrusted.is_file(path)]
    if missing:
        of = f"{len(missing)} of {len(files)} files of the weights are missing, the first is {missing[0]}"
        raise ModelError(f"{folder}: {of}: fetch the model again")
    if (folder / "adapter_config.json").is_file() and find_spec("peft") is None:
        raise ModelError(f"{folder}: holds an adapter, which would be left out without peft: pip install peft")


def has_vocabulary(folder: Path) -> bool:
    """Return whether a folder holds a file from which a tokenizer gets its vocabulary, whatever the tokenizer."""
    return any(_VOCABULARY.search(path.name) for path in folder.iterdir())
