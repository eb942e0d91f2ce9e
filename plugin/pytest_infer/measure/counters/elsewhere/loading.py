"""What processes took and read since they were started to load a model."""

from __future__ import annotations

import sys
from pathlib import Path

from pytest_infer.measure.counters.elsewhere.memory import TreeMemory
from pytest_infer.measure.counters.elsewhere.tree import Tree
from pytest_infer.measure.counters.elsewhere.use import TreeUse
from pytest_infer.measure.counters.kernel_files import now
from pytest_infer.records import Loading, Observed, Reading, absent


def loaded(
    observed: Observed, cached: Reading, platform: str = sys.platform, proc: Path = Path("/proc")
) -> Loading | None:
    """Return what the processes' loading took, of their whole lives so far; None for those that ran before.

    `cached` is what the page cache held of the files before they were started. Call it before anything resets marks.
    """
    if not observed.started:
        return None
    if platform != "linux":
        why = absent("only Linux tells it of another process")
        return Loading(
            cached=cached, read_bytes=why, rss_anon_bytes=why, rss_file_bytes=why, peak_rss_bytes=why,
            anon_growth_bytes=why,
        )  # fmt: skip
    tree = Tree(observed.pids, proc)
    try:
        use, memory = TreeUse(tree), TreeMemory(tree)
        used, sizes = use.readings({}, use.read()), memory.read()
        at_end = memory.readings(sizes, sizes)
        return Loading(
            cached=cached,
            read_bytes=used["read_bytes"],
            rss_anon_bytes=at_end["rss_anon_bytes"],
            rss_file_bytes=at_end["rss_file_bytes"],
            peak_rss_bytes=now(sizes, "peak", tree.source("status VmHWM since its start"), at_end["rss_bytes"].quality),
            anon_growth_bytes=at_end["rss_anon_bytes"],
        )
    finally:
        tree.close()
