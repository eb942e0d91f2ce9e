"""Sizes and bandwidths as people write them: 8GiB, 512 MiB, 40GB/s."""

from __future__ import annotations

import re

from pytest_infer.errors import OptionError

_WRITTEN = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([kKMGT]?)(i?)B(/s)?\s*")
_POWERS = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3, "T": 4}


def size(text: str, option: str) -> int:
    """Return bytes: GiB is 1024³, GB 1000³ (IEC 80000-13); raise OptionError for anything else."""
    return round(_number(text, option, "8GiB, 24GB, 512MiB", rate=False))


def bandwidth(text: str | None, option: str) -> float | None:
    """Return bytes per second, None for None; raise OptionError for what is no bandwidth, or is 0."""
    return None if text is None else _number(text, option, "40GB/s, 1.2TB/s, 12GiB/s", rate=True)


def _number(text: str, option: str, examples: str, *, rate: bool) -> float:
    found = _WRITTEN.fullmatch(text)
    if found is not None and bool(found[4]) is rate and (found[2] or not found[3]):
        value: float = float(found[1]) * (1024 if found[3] else 1000) ** _POWERS[found[2]]
        # 0 is a size (no reserve), but no bandwidth.
        if value or not rate:
            return value
    raise OptionError(f"{option} {text!r}: write a number with its unit, for example {examples}")
