"""What a test shows when it cannot be measured: one line, and no traceback that would keep the model alive."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest

from pytest_infer.errors import InferError

_Made = TypeVar("_Made")
_NO_MEMORY = ("can't allocate memory", "cannot allocate memory", "not enough memory", "out of memory")
"""How torch's allocators say it, for the CPU in a plain RuntimeError."""


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error, or what it was raised from, says that there was no memory left."""
    seen: BaseException | None = error
    while seen is not None:
        text = str(seen).lower()
        if isinstance(seen, MemoryError) or (isinstance(seen, RuntimeError) and any(t in text for t in _NO_MEMORY)):
            return True
        seen = seen.__cause__
    return False


def told(call: Callable[[], _Made], before: Callable[[], None] = lambda: None) -> _Made:
    """Return what `call` does, or let the test fail with one line for what is the user's to mend or for no memory."""
    try:
        return call()
    except InferError as error:
        refusal = str(error)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        refusal = f"out of memory: {str(error).splitlines()[0][:200] if str(error) else type(error).__name__}"
    # Outside the handler: a chained error would be shown twice, and its frames hold what was loaded so far.
    before()
    pytest.fail(refusal, pytrace=False)
