"""What changes the speed of the same code on the same machine: variables, preloaded libraries, huge pages."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from operator import attrgetter
from pathlib import Path

from pytest_infer.measure.counters.kernel_files import Sources

_THAT_CHANGE_SPEED = re.compile(
    r"(OMP|KMP|GOMP|GOTO|MKL|MKLDNN|OPENBLAS|BLIS|ARMPL|VECLIB|DNNL|ONEDNN|ATEN|TORCH|TORCHINDUCTOR|PYTORCH|TRITON)_\w+"
    r"|(CUDA|CUBLAS|CUBLASLT|CUDNN|NVIDIA_TF32|HIP|HIPBLASLT|HSA|ROCR|ROCBLAS|MIOPEN|SYCL|ZE|NCCL|TOKENIZERS|RAYON)_\w+"
    r"|DISABLE_ADDMM_CUDA_LT"
    r"|(MALLOC|_RJEM_MALLOC|JE_MALLOC|JEMALLOC|MIMALLOC|TCMALLOC)_\w+|GLIBC_TUNABLES|LD_PRELOAD|DYLD_INSERT_LIBRARIES"
    r"|PYTHON(MALLOC|MALLOCSTATS|OPTIMIZE|DEVMODE|TRACEMALLOC|PERFSUPPORT|_JIT|_GIL)"
)
_PLACES = re.compile(r"_(HOME|DIR|PATH|LOGS?|FILE|CACHE\w*)$")
"""Where something lies, which is no matter of speed and nobody's business."""
_PRELOADS = {"LD_PRELOAD", "DYLD_INSERT_LIBRARIES"}
_PATH = re.compile(r"(?<![\w.])~?/(?:[^/\s:,;=]+/)*([^/\s:,;=]*)")


def relevant(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables that are set and change the speed of what is measured; of paths the names only."""
    given = os.environ if environ is None else environ
    return {
        name: _names(value) if name in _PRELOADS else _PATH.sub(r"\1", value)
        for name, value in sorted(given.items())
        if _THAT_CHANGE_SPEED.fullmatch(name) and not _PLACES.search(name)
    }


def of_torch() -> dict[str, str]:
    """Return what a program has set in torch that changes its speed, if it is not torch's own; {} without torch."""
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    found: dict[str, str] = {}
    for name, usual, place in (
        ("float32_matmul_precision", "highest", "get_float32_matmul_precision"),
        ("use_deterministic_algorithms", "False", "are_deterministic_algorithms_enabled"),
        ("backends.cudnn.benchmark", "False", "backends.cudnn.benchmark"),
    ):
        with suppress(AttributeError, RuntimeError):  # of a torch that has it no more, or settings that contradict
            told = attrgetter(place)(torch)
            value = str(told() if callable(told) else told)
            if value != usual:
                found[f"torch.{name}"] = value
    return found


def preloaded(etc: Path = Path("/etc")) -> dict[str, str]:
    """Return what the dynamic linker loads into every process, as a variable would say it (ld.so(8)); often nothing."""
    names = _names(Sources().text("preloaded", etc / "ld.so.preload") or "")
    return {"ld.so.preload": names} if names else {}


def _names(paths: str) -> str:
    return " ".join(Path(part).name for part in re.split(r"[\s:]+", paths) if part)


def huge_pages(sys_folder: Path = Path("/sys"), sources: Sources | None = None) -> str | None:
    """Return the kernel's mode for transparent huge pages: always, madvise or never; None where it has none."""
    path = sys_folder / "kernel/mm/transparent_hugepage/enabled"
    return (sources or Sources()).read("huge_pages", path, _chosen)


def _chosen(text: str) -> str:
    chosen = re.search(r"\[(\w+)\]", text)
    if chosen is None:
        raise ValueError("no mode is chosen")
    return chosen[1]
