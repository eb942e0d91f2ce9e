"""What the garbage collector looks at: what outlives a test is set aside from it, once, and all of it at the end."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager

_COLLECTIONS = 5
"""What a collection finds may leave more behind; so often pytest looks."""


@contextmanager
def no_collections() -> Iterator[None]:
    """Start no collection until the block ends, as while libraries are imported: what they make is there to stay."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Heap:
    """Sees that a collection before each round finds only what came since, and that the one before a prompt is short.

    With torch and transformers loaded a full collection takes 0.2 s. It is done around the first prompt, and once more
    before the second test begins: what is alive then, between two tests, is there to stay, and is set aside until
    `release`. Nothing that belongs to a test alone is, since garbage among what is set aside is never found.
    """

    def __init__(self) -> None:
        self._measured = False
        self._aside = False

    def between_tests(self) -> None:
        """Set aside what is alive, if a prompt was measured since the last `release`; no test may be running."""
        if self._measured and not self._aside:
            gc.collect()
            gc.freeze()
            self._aside = True

    @contextmanager
    def still(self) -> Iterator[None]:
        """Collect garbage now; leave to collections within the block only what comes within it, or within its test."""
        gc.collect()
        if self._aside:
            yield
            return
        gc.freeze()
        try:
            yield
        finally:
            gc.unfreeze()
            self._measured = True

    def leave(self) -> None:
        """Collect until nothing is found, then set aside what is alive, until `release`, and again when Python ends.

        pytest collects ten times while it ends, and Python does when it has: 3 s a process with torch and transformers.
        """
        gc.unfreeze()
        for _ in range(_COLLECTIONS):
            if not gc.collect():
                break
        gc.freeze()
        self._aside = True
        atexit.unregister(gc.freeze)
        atexit.register(gc.freeze)

    def release(self) -> None:
        """Give all back to the collector, as something that outlives a test may now be garbage."""
        if self._aside:
            gc.unfreeze()
        self._measured = self._aside = False
