"""What changes the speed of the same code on the same machine: variables, preloaded libraries, huge pages."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

_THAT_CHANGE_SPEED = re.compile(
    r"(OMP|KMP|GOMP|MKL|OPENBLAS|BLIS|DNNL|ONEDNN|ATEN|TORCH|TORCHINDUCTOR|PYTORCH|MALLOC|CUDA|HIP|NCCL)_\w+"
    r"|LD_PRELOAD|GLIBC_TUNABLES|JEMALLOC_\w+|TCMALLOC_\w+|PYTHONMALLOC|PYTHONOPTIMIZE|PYTHONDEVMODE|PYTHON_JIT|PYTHON_GIL"
)
_PLACES = re.compile(r"_(HOME|DIR|PATH|LOGS?|FILE|CACHE\w*)$")
"""Where something lies, which is no matter of speed and nobody's business."""


def relevant(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables that are set and change the speed of what is measured; of paths the names only."""
    given = os.environ if environ is None else environ
    return {
        name: " ".join(Path(part).name for part in re.split(r"[ :]+", value)) if name == "LD_PRELOAD" else value
        for name, value in sorted(given.items())
        if _THAT_CHANGE_SPEED.fullmatch(name) and not _PLACES.search(name)
    }


def huge_pages(sys_folder: Path = Path("/sys")) -> str | None:
    """Return the kernel's mode for transparent huge pages: always, madvise or never; None where it has none."""
    try:
        text = (sys_folder / "kernel/mm/transparent_hugepage/enabled").read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    chosen = re.search(r"\[(\w+)\]", text)
    return None if chosen is None else chosen[1]
