"""The counters around any `with` block of a test: what the fixture `system_sampler` hands out."""

from __future__ import annotations

from types import TracebackType

from pytest_infer.errors import InferError
from pytest_infer.measure.counters.snapshot import Snapshot, SystemCounters
from pytest_infer.records import MachineInfo, SystemRecord


class SampledBlock:
    """One `with` block; `record` is there once it has ended."""

    def __init__(self, counters: SystemCounters, machine: MachineInfo) -> None:
        self._counters = counters
        self._machine = machine
        self._before: Snapshot | None = None
        self._record: SystemRecord | None = None

    @property
    def record(self) -> SystemRecord:
        """What the kernel counted in the block.

        Raises:
            InferError: the block has not ended.
        """
        if self._record is None:
            raise InferError("read `.record` after the `with system_sampler() as s:` block, not inside it")
        return self._record

    def __enter__(self) -> SampledBlock:
        self._record = None
        self._before = self._counters.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._before is not None:
            self._record = SystemRecord(counters=self._counters.end(self._before), machine=self._machine)
        self._before = None


class SystemSampler:
    """Call it for a block: `with system_sampler() as s: ...`, as often as required, also nested."""

    def __init__(self, counters: SystemCounters, machine: MachineInfo) -> None:
        self._counters = counters
        self._machine = machine

    def __call__(self) -> SampledBlock:
        """Return a new block to enter."""
        return SampledBlock(self._counters, self._machine)
