"""What a model's files say about it, without loading weights: config, headers of safetensors and GGUF, sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

from pytest_infer import untrusted
from pytest_infer.engines import models
from pytest_infer.engines.bundled import cache
from pytest_infer.engines.checkpoint import gguf_header, hashes, hub, tensors
from pytest_infer.engines.checkpoint.tensors import Tensor
from pytest_infer.errors import ModelError

_CONFIG: msgspec.json.Decoder[dict[str, Any]] = msgspec.json.Decoder(dict[str, Any])
_PART = re.compile(r"(.*)[0-9]{5}-of-([0-9]{5})")


class ModelSource(StrEnum):
    """Where the sizes come from."""

    SAFETENSORS = "safetensors headers"
    GGUF = "GGUF header"
    FILES = "file sizes"
    CONFIG = "config alone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model as its files describe it.

    `config` is config.json, or a GGUF file's metadata under the names that config.json has for them. `tensors` is
    empty where no header lists them; `stored_bytes` is the size of the weights' files, None where there are none.
    `folder` is where they lie, None while they are only on the hub.
    """

    name: str
    source: ModelSource
    config: Mapping[str, Any]
    tensors: tuple[Tensor, ...] = ()
    files: tuple[Path, ...] = ()
    stored_bytes: int | None = None
    folder: Path | None = None


def find(name: str, revision: str | None = None) -> Checkpoint:
    """Return what is known of a model by its name: a bundled one, a folder, a GGUF file, or a hub id.

    Raises:
        ModelError: there is no such model, its files are damaged, the hub does not answer, or what is here has no
            revisions.
    """
    path = models.expanded(name)
    if (file := _gguf(name, path)) is not None:
        if revision is not None:
            raise ModelError(f"{name} is a local file and has no revisions: leave out the revision {revision}")
        return of_gguf(file)
    models.check_name(name, revision)
    if name in models.BUNDLED:
        return replace(of_folder(_bundled(name)), name=name)
    if untrusted.is_dir(path):
        return of_folder(path)
    folder = models.local_folder(name, revision)
    there = [] if folder is None else hashes.files(folder)
    # A download that was broken off may have left the index of files that did not come.
    if folder is None or not there or not all(map(untrusted.is_file, there)):
        return _on_hub(name, revision)
    return replace(of_folder(folder), name=name)


def _gguf(name: str, path: Path) -> Path | None:
    """Return the GGUF file that a name is, or the first of a folder that is none of transformers'."""
    if path.suffix == ".gguf" and untrusted.is_file(path):
        return path
    if name in models.BUNDLED or not untrusted.is_dir(path) or (path / "config.json").is_file():
        return None
    return min(path.glob("*.gguf"), default=None)


def _bundled(name: str) -> Path:
    """Return a bundled model's folder if it is built: building one requires torch, which a doctor must not load."""
    shipped = Path(__file__).parents[1] / "data" / name
    folder = shipped if shipped.is_dir() else cache.root() / name
    if not (folder / "config.json").is_file():
        raise ModelError(f"{name} is not built yet: pytest-infer models --build {name}")
    return folder


def of_folder(folder: Path) -> Checkpoint:
    """Return what the files of a transformers folder say.

    Raises:
        ModelError: config.json or a header is missing or damaged.
    """
    config = _config(folder / "config.json")
    found = _there(hashes.files(folder))
    stored = sum(path.stat().st_size for path in found) or None
    known = Checkpoint(
        name=models.display_name(str(folder)),
        source=ModelSource.FILES if found else ModelSource.CONFIG,
        config=config,
        files=tuple(found),
        stored_bytes=stored,
        folder=folder,
    )
    kinds = {path.suffix for path in found}
    if kinds == {".safetensors"}:
        return replace(known, source=ModelSource.SAFETENSORS, tensors=tensors.of_folder(folder))
    if kinds == {".gguf"}:
        inner = of_gguf(found[0])
        return replace(known, source=ModelSource.GGUF, tensors=inner.tensors, config={**inner.config, **config})
    return known


def _there(files: list[Path]) -> list[Path]:
    missing = [path.name for path in files if not untrusted.is_file(path)]
    if missing:
        raise ModelError(f"{files[0].parent}: {missing[0]} is missing: fetch it again")
    return files


def _config(path: Path) -> dict[str, Any]:
    try:
        return untrusted.decode(_CONFIG, untrusted.read(path, untrusted.TEXT_BYTES))
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from error
    except untrusted.Damaged as error:
        raise ModelError(f"{path}: not a config: {error}") from error


_GGUF_KEYS = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "v_head_dim",
    "attention.sliding_window": "sliding_window",
    "attention.kv_lora_rank": "kv_lora_rank",
    "context_length": "max_position_embeddings",
    "expert_count": "num_local_experts",
    "expert_used_count": "num_experts_per_tok",
    "ssm.state_size": "state_size",
}


def of_gguf(path: Path) -> Checkpoint:
    """Return what the header of a GGUF file says; the parts of a split one are taken together."""
    files = _there(parts(path))
    read = [gguf_header.of_file(part) for part in files]
    metadata = read[0][0]
    kind = str(metadata.get("general.architecture", ""))
    config: dict[str, Any] = {"model_type": f"gguf:{kind}"}
    config.update({key: metadata[f"{kind}.{own}"] for own, key in _GGUF_KEYS.items() if f"{kind}.{own}" in metadata})
    return Checkpoint(
        name=path.stem,
        source=ModelSource.GGUF,
        config=config,
        tensors=tuple(tensor for _, found in read for tensor in found),
        files=tuple(files),
        stored_bytes=sum(part.stat().st_size for part in files),
        folder=path.parent,
    )


def parts(path: Path) -> list[Path]:
    """Return all files of a GGUF, there or not; of a split one by names as ggml has them: NAME-00001-of-00003.gguf."""
    found = _PART.fullmatch(path.stem)
    if found is None or int(found[2]) == 0:
        return [path]
    return [path.with_name(f"{found[1]}{n:05}-of-{found[2]}.gguf") for n in range(1, int(found[2]) + 1)]


def state(name: str, revision: str | None) -> list[tuple[str, int, int]] | str | None:
    """Return what differs where a name stands for other weights than before: of local files their sizes and times.

    Of a hub id the commit in the hub's cache; None for bundled models and what is not here.
    """
    path = models.expanded(name)
    if not name or name in models.BUNDLED:
        return None
    if not untrusted.exists(path):
        return models.commit(models.local_folder(name, revision))
    files = sorted(path.iterdir()) if untrusted.is_dir(path) else parts(path)
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if untrusted.is_file(file)]


def _on_hub(name: str, revision: str | None) -> Checkpoint:
    """Return what the hub says about a model: its config, and its safetensors headers through range requests."""
    if hub.only_cached(name, revision):
        raise ModelError(f"{name}: the hub cannot be reached, and its cache does not hold the weights: give a folder")
    # Imported late: only a model from the hub needs it.
    from huggingface_hub import HfApi, hf_hub_download  # noqa: PLC0415
    from huggingface_hub.errors import (  # noqa: PLC0415
        LocalEntryNotFoundError,
        NotASafetensorsRepoError,
        SafetensorsParsingError,
    )

    failures: tuple[type[Exception], ...] = (*hub.failures(), LocalEntryNotFoundError, SafetensorsParsingError)
    try:
        config = _config(Path(hf_hub_download(name, "config.json", revision=revision)))
        metadata = HfApi().get_safetensors_metadata(name, revision=revision)
    except NotASafetensorsRepoError:
        return Checkpoint(name=name, source=ModelSource.CONFIG, config=config)
    except failures as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{name}: the hub does not tell: {reason}; give a folder instead") from error
    found = tuple(
        Tensor(name=key, dtype=t.dtype, shape=tuple(t.shape), bytes=t.data_offsets[1] - t.data_offsets[0])
        for file in metadata.files_metadata.values()
        for key, t in file.tensors.items()
    )
    stored = sum(tensor.bytes for tensor in found)
    return Checkpoint(name=name, source=ModelSource.SAFETENSORS, config=config, tensors=found, stored_bytes=stored)
