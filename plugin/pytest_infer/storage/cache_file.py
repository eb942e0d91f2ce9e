"""Files in the cache folder: what is lost with one of them is measured, or read, again."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from pytest_infer import untrusted
from pytest_infer.engines.bundled import cache
from pytest_infer.errors import ModelError
from pytest_infer.storage import files

Kept = TypeVar("Kept")


def path(name: str) -> Path | None:
    """Return where a file of the cache is, or None where there is no cache folder."""
    try:
        return cache.root() / name
    except ModelError:
        return None


def here(*where: str) -> tuple[str, ...]:
    """Return what is valid on this machine only: its name, what else is given, its usable cores, torch's version."""
    # Imported late: commands over stored runs need neither.
    import importlib.metadata  # noqa: PLC0415

    from pytest_infer.measure.counters.cpu import cores  # noqa: PLC0415

    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        torch = "none"
    return (platform.node(), *where, f"{cores().usable:g} cores", f"torch {torch}")


def read(name: str, kind: type[dict[str, Kept]]) -> dict[str, Kept]:
    """Return a table, decoded as `kind`; one that is not there or cannot be read counts as empty."""
    place = path(name)
    try:
        content = b"{}" if place is None else untrusted.read(place, untrusted.TEXT_BYTES)
        return untrusted.decode(msgspec.json.Decoder(kind), content)
    except (OSError, untrusted.Damaged):
        return {}


def write(name: str, table: dict[str, Any]) -> None:
    """Keep a table in place of what was there."""
    put(path(name), msgspec.json.format(msgspec.json.encode(table)))


def put(place: Path | None, content: bytes) -> None:
    """Keep bytes in place of what was there; a cache may be unwritable, or nowhere."""
    if place is None:
        return
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(place) as file:
            file.write(content)
    except OSError:
        return
