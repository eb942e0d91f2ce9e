"""Marks of a round that is taken apart: when which module or span began and ended, and the ticks between steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from itertools import pairwise
from time import perf_counter_ns
from types import TracebackType
from typing import Any, Protocol

ENDED, TICKED, RESUMED = -1, -2, -3
"""Codes of marks that are no beginning: a module or span ended, a step ended, and the next one began."""


class Stamper(Protocol):
    """Reads a clock, now or when the device comes to it."""

    name: str

    def now(self) -> Any:
        """Return a stamp."""

    def ns(self, stamps: Sequence[Any]) -> list[int]:
        """Return stamps as nanoseconds since any moment, once all of them have passed."""


class HostStamper:
    """The clock of the host, for models that compute where they are called."""

    name = "host"
    now = staticmethod(perf_counter_ns)

    def ns(self, stamps: Sequence[int]) -> list[int]:
        """Return them as they are."""
        return list(stamps)


class DeviceStamper:
    """Events in the stream that an accelerator works on now: nothing waits for them, they are read after the round.

    An event that is given no stream is recorded in one of the current device, whichever it was made for (torch/csrc/
    Event.cpp): a model on cuda:1 would be timed by what cuda:0 does.
    """

    name = "device"

    def __init__(self, device: Any) -> None:
        import torch  # noqa: PLC0415 - a round of an engine without torch needs none

        self._torch = torch
        self._device = device

    def now(self) -> Any:
        """Record an event."""
        event = self._torch.Event(device=self._device, enable_timing=True)
        event.record(self._torch.accelerator.current_stream(self._device))
        return event

    def ns(self, stamps: Sequence[Any]) -> list[int]:
        """Return the time of each, from one to the next: long differences would lose digits."""
        self._torch.accelerator.synchronize(self._device)
        at, found = 0, [0] if stamps else []
        for before, after in pairwise(stamps):
            at += round(1e6 * before.elapsed_time(after))
            found.append(at)
        return found


@dataclass(frozen=True, slots=True)
class Site:
    """What a mark may begin: a role, in a layer or in that of what is around it; `hooked` where a hook marks it."""

    role: str
    layer: int | None
    hooked: bool


class Marks:
    """Two lists of equal length, which grow while the round runs: codes, and stamps of a clock.

    A code from 0 on is the number of a site that begins.
    """

    def __init__(self, stamper: Stamper) -> None:
        self.stamper = stamper
        self.sites: list[Site] = []
        self.codes: list[int] = []
        self.stamps: list[Any] = []
        self.observed: list[bool] = []
        """Of each step that ended, whether modules and spans were marked within it."""
        self._numbers: dict[Site, int] = {}

    def clear(self) -> None:
        """Forget all marks, and keep the sites."""
        self.codes.clear()
        self.stamps.clear()
        self.observed.clear()

    def number(self, site: Site) -> int:
        """Return the number of a site."""
        if site not in self._numbers:
            self._numbers[site] = len(self.sites)
            self.sites.append(site)
        return self._numbers[site]

    def add(self, code: int) -> None:
        """Mark this moment."""
        self.codes.append(code)
        self.stamps.append(self.stamper.now())

    def resume(self) -> None:
        """Mark the beginning of a step."""
        self.add(RESUMED)

    def tick(self, *, observed: bool) -> None:
        """Mark the end of a step, and say what it was."""
        self.add(TICKED)
        self.observed.append(observed)

    def hooks(self, number: int) -> tuple[Callable[..., None], Callable[..., None]]:
        """Return what marks before and after a module's forward: one read of the clock each, and nothing else."""
        code, stamp, now = self.codes.append, self.stamps.append, self.stamper.now

        def before(_module: object, _given: object) -> None:
            code(number)
            stamp(now())

        def after(_module: object, _given: object, _returned: object) -> None:
            stamp(now())
            code(ENDED)

        return before, after

    def around(self, number: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Return a forward that marks before and after its own: what hooks do, for less.

        A module that has a hook is called through a longer part of torch's code, which takes more time than both marks.
        """
        code, stamp, now = self.codes.append, self.stamps.append, self.stamper.now

        @wraps(forward)
        def marked(*args: Any, **kwargs: Any) -> Any:
            code(number)
            stamp(now())
            try:
                return forward(*args, **kwargs)
            finally:
                stamp(now())
                code(ENDED)

        return marked


class Span:
    """A context that marks its beginning and its end."""

    __slots__ = ("_marks", "_number")

    def __init__(self, marks: Marks, number: int) -> None:
        self._marks = marks
        self._number = number

    def __enter__(self) -> None:
        """Mark the beginning."""
        self._marks.add(self._number)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Mark the end."""
        self._marks.add(ENDED)
