"""Lines about what a process was given that others may not have, and about what the system did not tell it."""

from __future__ import annotations

from collections.abc import Mapping

from pytest_infer.measure.machine import scheduling

_WORDS = {
    "nice": "niceness",
    "policy": "scheduled as",
    "cpu_weight": "CPU weight",
    "cpu_shares": "CPU shares",
    "memory_policy": "memory policy",
    "turbo": "turbo",
}


def line(environment: Mapping[str, str] | None, granted: Mapping[str, str] | None) -> str | None:
    """Return the variables that are set and change speed, and what is not as by default; None where nothing is."""
    unusual = scheduling.unusual(dict(granted or {}))
    parts = [f"{name}={value}" for name, value in (environment or {}).items()]
    parts += [f"{_WORDS[name]} {value}" for name, value in unusual.items()]
    return f"set here: {' · '.join(parts)}" if parts else None


def unread(absent: Mapping[str, str] | None) -> str | None:
    """Return what of a machine could not be read, each reason once with the names that it is of; None for nothing."""
    names: dict[str, list[str]] = {}
    for name, reason in (absent or {}).items():
        names.setdefault(reason, []).append(name.removesuffix("_bytes").replace("_", " "))
    parts = [f"{', '.join(of)} ({reason})" for reason, of in names.items()]
    return f"not known in full: {' · '.join(parts)}" if parts else None
