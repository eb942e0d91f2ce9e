from __future__ import annotations

import errno
import os
from pathlib import Path

from pytest_infer.measure.counters.kernel_files import KernelFile, Unavailable, difference, now, why
from pytest_infer.records import Quality


def number(text: bytes) -> dict[str, float]:
    return {"n": int(text)}


def test_a_kernel_file_reads_what_it_says_now(tmp_path: Path) -> None:
    path = tmp_path / "n"
    path.write_text("1")
    file = KernelFile(path, number)
    assert file.read() == {"n": 1}
    path.write_text("22")
    assert file.read() == {"n": 22}
    file.close()
    assert file.read() == Unavailable(f"{path} was closed")
    file.close()


def test_an_absent_file_is_missing_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "none"
    assert KernelFile(path, number).read() == Unavailable(f"this kernel or container has no {path}")


def test_another_form_is_missing_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "n"
    path.write_text("many")
    file = KernelFile(path, number)
    assert file.read() == Unavailable(f"{path} is not in the expected form")
    file.close()


def test_reasons() -> None:
    assert why(PermissionError(errno.EACCES, "no"), "/proc/self/io") == "permission denied: /proc/self/io"
    unsupported = OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    assert why(unsupported, "/x") == "/x: Operation not supported"


def test_difference_keeps_counts_whole_and_divides_times() -> None:
    count = difference({"n": 2**60}, {"n": 2**60 + 1}, "n", "here")
    assert count.value == 1
    assert isinstance(count.value, int)
    seconds = difference({"n": 10}, {"n": 15}, "n", "here", per_unit=10, quality=Quality.ESTIMATED)
    assert (seconds.value, seconds.quality, seconds.source) == (0.5, Quality.ESTIMATED, "here")


def test_a_sample_that_is_missing_or_lacks_the_value_is_never_zero() -> None:
    gone = Unavailable("denied")
    for before, after in (({"n": 1.0}, gone), (gone, {"n": 1.0})):
        reading = difference(before, after, "n", "here")
        assert (reading.value, reading.reason) == (None, "denied")
    assert difference({"n": 1}, {"m": 1}, "n", "here").reason == "this system does not tell here"
    assert now(gone, "n", "here").reason == "denied"
    assert now({"m": 1}, "n", "here").value is None
    assert now({"n": 0}, "n", "here").value == 0
