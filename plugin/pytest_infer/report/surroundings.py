"""A line about what a process was given that others may not have: variables and priorities that change its speed."""

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
