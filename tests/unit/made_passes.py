"""Halves of passes in turns of a token, as a side sends them."""

import numpy as np

from pytest_infer.records import Pass


def one(*steps, first=10, waited=(), begins=False):
    """A pass that starts at 100 and whose gaps are these, after a first token of `first`."""
    stamps_ns = tuple(int(s) for s in np.cumsum([100 + first, *steps]))
    ticks = (1,) * len(stamps_ns)
    waited_ns = tuple(int(wait) for wait in waited)
    return Pass(
        start_ns=100, stamps_ns=stamps_ns, tick_sizes=ticks, token_ids=ticks, waited_ns=waited_ns, begins=begins
    )
