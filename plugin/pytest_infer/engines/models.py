"""The models that come with the package, by name, and where any model is to be found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pytest_infer.engines.bundled import cache
from pytest_infer.errors import ModelError, alternatives

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


def resolve(name: str, progress: Progress) -> str:
    """Return what to load: a bundled model's folder, a local folder, or the name itself as a hub id.

    Raises:
        ModelError: a path that is no model folder, or a bare name that is neither bundled nor a folder.
    """
    if name in BUNDLED:
        return str(BUNDLED[name].ensure(progress))
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"{name}: the folder holds no config.json, so it is not a transformers model")
        return str(folder)
    if _looks_like_path(name):
        raise ModelError(
            f"{name}: no such folder; give a folder with a config.json, a hub id, or one of {', '.join(BUNDLED)}"
        )
    if "/" not in name:
        raise ModelError(f"{alternatives('model', name, BUNDLED)}; or a folder, or a hub id written owner/name")
    return name
