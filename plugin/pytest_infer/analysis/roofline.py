"""The roofline's formulas for analyses; they are the table's own, so that both always agree."""

from pytest_infer.metrics.roofline import (
    attended_pairs,
    ceiling,
    mbu,
    mean_cache_bytes,
    mfu,
    prefill_flops,
    step_bytes,
)

__all__ = ["attended_pairs", "ceiling", "mbu", "mean_cache_bytes", "mfu", "prefill_flops", "step_bytes"]
