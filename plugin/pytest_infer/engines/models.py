"""The models that come with the package, by name, and where to find any model."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from pytest_infer import untrusted
from pytest_infer.engines.bundled import cache
from pytest_infer.errors import UnknownValueError, alternatives

DEFAULT = "reference-moe"
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundled:
    """A model that needs no hub: shipped, or built once into the cache by `ensure`."""

    name: str
    description: str
    ensure: Callable[[Progress], Path]


def _reference_moe(_progress: Progress) -> Path:
    return Path(__file__).parent / "data" / "reference-moe"


def _smollm2(progress: Progress) -> Path:
    # Imported late: building needs numpy and torch, which the look-up of names must not load.
    from pytest_infer.engines.bundled import smollm2  # noqa: PLC0415

    return smollm2.ensure(cache.root(), progress)


def _smollm2_moe(progress: Progress) -> Path:
    from pytest_infer.engines.bundled import upcycle  # noqa: PLC0415

    return upcycle.ensure(cache.root(), progress)


BUNDLED = {
    model.name: model
    for model in (
        Bundled(
            name="reference-moe",
            description="3.55 M parameters, Mixtral-style, shipped in the package: real routing, simple English",
            ensure=_reference_moe,
        ),
        Bundled(
            name="smollm2-moe",
            description="SmolLM2-135M upcycled to 4 experts, top-2; built once into the cache",
            ensure=_smollm2_moe,
        ),
        Bundled(
            name="smollm2",
            description="SmolLM2-135M-Instruct, dense; converted once into the cache",
            ensure=_smollm2,
        ),
    )
}


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~", "\\")) or name.count("/") > 1 or name.endswith("/") or "\\" in name


def expanded(name: str) -> Path:
    """Return a path with the home folder for its ~, and as it is where that is an unknown user's."""
    # Unlike Path.expanduser, this raises nothing then.
    return Path(os.path.expanduser(name))  # noqa: PTH111


def _folder(name: str) -> Path | None:
    """Return the local folder that a name refers to, if it exists."""
    folder = expanded(name)
    return folder if name and name not in BUNDLED and untrusted.is_dir(folder) else None


def check_name(name: str, revision: str | None = None) -> None:
    """Reject what cannot name a model, without torch and without the network.

    Raises:
        UnknownValueError: a file, a path that is no model folder, a bare name that is neither bundled nor a folder, or
            a revision of what has none.
    """
    folder = _folder(name)
    if folder is not None and not (folder / "config.json").is_file():
        raise UnknownValueError(f"{name}: the folder holds no config.json, so it is not a transformers model")
    if folder is None and name not in BUNDLED:
        if is_gguf(name):
            raise UnknownValueError(
                f"{name}: a file, and no folder with a config.json; one in GGUF is run by --infer-engine llamacpp"
            )
        if _looks_like_path(name):
            raise UnknownValueError(
                f"{name}: no such folder; give a folder with a config.json, a hub id, or one of {', '.join(BUNDLED)}"
            )
        if "/" not in name:
            raise UnknownValueError(
                f"{alternatives('model', name, BUNDLED)}; or a folder, or a hub id written owner/name"
            )
    elif revision is not None:
        kind = "comes with the package" if name in BUNDLED else "is a local folder"
        raise UnknownValueError(f"{name} {kind} and has no revisions: leave out the revision {revision}")


def resolve(name: str, progress: Progress) -> str:
    """Return what to load: a bundled model's folder, a local folder, or the name itself as a hub id.

    Raises:
        ModelError: `check_name` refuses the name, or a bundled model cannot be built.
    """
    check_name(name)
    if name in BUNDLED:
        return str(BUNDLED[name].ensure(progress))
    folder = _folder(name)
    return name if folder is None else str(folder)


def is_gguf(name: str) -> bool:
    """Return whether a name is that of a file that is here, and no bundled model."""
    return name not in BUNDLED and untrusted.is_file(expanded(name))


def gguf(name: str, dtype: str, progress: Progress) -> Path:
    """Return the GGUF file that a name is, or that of a bundled model, written into the cache on the first call.

    Raises:
        ModelError: there is none, it cannot be built, or the package that writes it is not installed.
    """
    path = expanded(name)
    if is_gguf(name):
        return path
    if name in BUNDLED:
        folder = BUNDLED[name].ensure(progress)
        # Imported late: the look-up of names must not load numpy.
        from pytest_infer.engines.bundled import gguf_file  # noqa: PLC0415

        return gguf_file.ensure(name, folder, dtype, cache.root(), progress)
    if untrusted.is_dir(path):
        held = sorted(file.name for file in path.glob("*.gguf"))
        told = f"name the file in it: {held[0]}" if held else "convert it with llama.cpp's convert_hf_to_gguf.py"
        raise UnknownValueError(f"{name}: a folder, and llama.cpp runs a GGUF file: {told}")
    raise UnknownValueError(
        f"{name}: no such file: llama.cpp runs a GGUF file that is here, or one of {', '.join(BUNDLED)}"
    )


def local_folder(source: str, revision: str | None) -> Path | None:
    """Return the folder that holds what `resolve` named: itself, or a hub model's folder in the hub's cache."""
    if untrusted.is_dir(Path(source)):
        return Path(source)
    # Imported late: only a model from the hub needs it.
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415

    try:
        config = try_to_load_from_cache(source, "config.json", revision=revision)
    except ValueError:  # the name of a server, or of an engine of somebody's own, need not be one of the hub
        return None
    return Path(config).parent if isinstance(config, str) else None


def commit(folder: Path | None) -> str | None:
    """Return the commit of which a folder of the hub's cache is the snapshot; None for any other folder."""
    return folder.name if folder is not None and folder.parent.name == "snapshots" else None


def display_name(name: str) -> str:
    """Return how results name a model: a hub id as it is, a folder or a file without its path, which is private."""
    if _folder(name) is None and not is_gguf(name) and not _looks_like_path(name):
        return name
    return PureWindowsPath(Path(name).absolute()).name


def origin(name: str) -> str | None:
    """Return where results say that a model came from: its hub id, or that it was a local folder."""
    if name in BUNDLED:
        return None
    return name if _folder(name) is None else "local folder"
