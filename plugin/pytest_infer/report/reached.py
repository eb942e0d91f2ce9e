"""How near to its limit a run came, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_infer.report.text import printable
from pytest_infer.units import percent, significant

if TYPE_CHECKING:
    from pytest_infer.analysis.reached import Reached


def words(reached: Reached) -> str:
    """Return it as `prompts of run 0003 (smollm2) reached 38.2 to 41.0 % of their limit`."""
    of = f" ({reached.model})" if reached.model else ""
    low = "" if reached.low == reached.high else f"{significant(100 * reached.low)} to "
    return printable(f"prompts of run {reached.run}{of} reached {low}{percent(100 * reached.high)} of their limit")
