"""Both sides of a comparison within one run: their blocks side by side, and the noise between equal code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from pytest_infer.metrics import by_key
from pytest_infer.pytest_face.options import SELF
from pytest_infer.records import AgainstInfo, PromptRecord
from pytest_infer.storage import block

if TYPE_CHECKING:
    from pytest_infer.analysis.compare.noise import NamedFloor

Block = dict[str, Any]
_NOISE_OF = ("ttft_s", "tpot_s", "total_s", "peak_rss_bytes")


def of(
    pairs: Mapping[str, tuple[PromptRecord | None, PromptRecord]], passed: Mapping[str, Block], info: AgainstInfo
) -> tuple[dict[str, tuple[Block | None, Block]], list[NamedFloor]]:
    """Return the blocks of both sides, the other side's first, of each test that passed, and the noise between them.

    Keeps the other side's figures in our block. There is noise to tell only where a checkout meets itself.
    """
    blocks: dict[str, tuple[Block | None, Block]] = {}
    noise: list[NamedFloor] = []
    for test, (base, ours) in pairs.items():
        if test not in passed:
            continue
        if base is None:
            blocks[test] = (None, passed[test])
            continue
        theirs = block.build(base)
        blocks[test] = (theirs, passed[test])
        if info.rev == SELF:
            noise += _noise_of(ours.prompt.name, theirs["metrics"], passed[test]["metrics"])
        passed[test]["against"] = {**msgspec.to_builtins(info), "metrics": theirs["metrics"]}
    return blocks, noise


def _noise_of(prompt: str, before: Mapping[str, Block], after: Mapping[str, Block]) -> list[NamedFloor]:
    """Return the noise of the figures that gates are about, from rounds of the same code on both sides."""
    # Imported late: loading the plugin must not load numpy and scipy.
    from pytest_infer.analysis.compare import noise as floors  # noqa: PLC0415

    found = []
    for key in _NOISE_OF:
        a, b = (metrics.get(key, {}).get("rounds", ()) for metrics in (before, after))
        if len(a) == len(b) > 1 and min((*a, *b)) > 0:
            found.append(floors.NamedFloor(name=prompt, label=by_key(key).label, floor=floors.floor(a, b)))
    return found
