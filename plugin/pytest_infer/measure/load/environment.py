"""The load generator's own environment: a venv in the cache folder, with what it needs and we do not."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pytest_infer.engines.bundled import cache
from pytest_infer.errors import EngineError
from pytest_infer.units import size
from pytest_infer.untrusted import reason

GENERATOR = "guidellm"
VERSION = "0.8.1"
TORCH = "2.13.0"
"""Of the CPU build: what PyPI calls plain torch brings gigabytes of CUDA for Linux."""
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
DOWNLOAD = "about 0.4 GB"
ON_DISK = "about 1.4 GB"
INSTALL = "pytest-infer load-generator install"
_BROKEN = re.compile(r"after connection broken by '(.{1,300})'")
"""What pip writes for each connection that it could not make or keep."""
_OBJECT = re.compile(r"<[^<>]*>: ")
_ELSEWHERE = ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER", "PIP_PYTHON", "PIP_DRY_RUN")
"""What makes pip install into another place, or nothing; where it finds packages stays as the user has it."""
_MANIFEST = "pytest-infer.json"
_LIMIT_S = 3600.0

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """The environment as it lies in the cache folder."""

    folder: Path
    version: str

    @property
    def program(self) -> Path:
        """Return the generator's program."""
        return self.folder / "bin" / GENERATOR

    @property
    def python(self) -> Path:
        """Return the environment's interpreter, a link to the one that made it."""
        return self.program.with_name("python")


def folder() -> Path:
    """Return where the environment lies, or would."""
    return cache.root() / f"load-generator-{GENERATOR}-{VERSION}"


def requirements() -> tuple[str, ...]:
    """Return what pip installs."""
    local = "+cpu" if sys.platform.startswith("linux") else ""
    return f"{GENERATOR}=={VERSION}", f"torch=={TORCH}{local}"


def installed() -> Installed | None:
    """Return the environment; None where there is none, its interpreter is gone, or installing it was cut short."""
    here = folder()
    try:
        told = json.loads((here / _MANIFEST).read_text(encoding="utf-8"))
        found = Installed(folder=here, version=str(told["version"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if found.program.is_file() and found.python.is_file() else None


def _check_system() -> None:
    if sys.platform.startswith("win"):
        raise EngineError(f"load tests need Linux or macOS: what ends {GENERATOR} with the run does not know Windows")


def required() -> Installed:
    """Return the environment; raise EngineError naming the command that makes it, or the systems that have it."""
    _check_system()
    found = installed()
    if found is None:
        raise EngineError(
            f"load tests send their requests with {GENERATOR}, in an environment of its own that is not installed: "
            f"{INSTALL} ({DOWNLOAD} to download, {ON_DISK} on disk)"
        )
    return found


def install(progress: Progress) -> Installed:
    """Make the environment, unless it is there; raise EngineError with pip's own words where it fails.

    It is whole or absent: what marks it as whole is written last.
    """
    from filelock import FileLock  # noqa: PLC0415 - every run that measures imports this module

    _check_system()
    here = folder()
    with cache.explained(here.parent, "install the load generator"):
        here.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(here.parent / f".{here.name}.lock"):
            found = installed()
            if found is not None:
                return found
            if here.exists():
                shutil.rmtree(here)
            _install(here, progress)
    return required()


def _install(here: Path, progress: Progress) -> None:
    began = time.monotonic()
    progress(f"making {here}: {' and '.join(requirements())}, {DOWNLOAD} to download and {ON_DISK} on disk …")
    try:
        _fill(here)
    except BaseException:
        shutil.rmtree(here, ignore_errors=True)
        raise
    (here / _MANIFEST).write_text(json.dumps({"version": VERSION, "torch": TORCH}) + "\n", encoding="utf-8")
    progress(f"installed in {time.monotonic() - began:.0f} s, {size(_bytes(here))}")


def _fill(here: Path) -> None:
    import venv  # noqa: PLC0415

    generator, torch = requirements()
    try:
        venv.create(here, with_pip=True, symlinks=True)
    except subprocess.SubprocessError as error:
        raise EngineError(
            f"Python cannot make an environment with pip: {reason(error)}; on Debian and Ubuntu install python3-venv"
        ) from error
    # As the user's own index has it, which of PyPI's is seldom so: then from PyTorch's.
    try:
        _pip(here, torch)
    except EngineError:
        _pip(here, torch, "--index-url", CPU_INDEX)
    _pip(here, generator, torch)
    if not Installed(folder=here, version=VERSION).program.is_file():
        raise EngineError(f"pip installed {generator} elsewhere than in {here}: see what `pip config list` says")


def _pip(here: Path, *arguments: str) -> None:
    """Install into the environment; raise EngineError with pip's last words where it fails."""
    python = str(Installed(folder=here, version=VERSION).python)
    # Isolated: what PYTHONPATH has would count as installed.
    environ = {name: value for name, value in os.environ.items() if name not in _ELSEWHERE}
    command = [python, "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False, env=environ)
    except (OSError, subprocess.SubprocessError) as error:
        raise EngineError(f"pip cannot install {arguments[0]}: {reason(error)}") from error
    broken = _BROKEN.findall(done.stderr)
    if done.returncode and broken:
        why = _OBJECT.sub("", broken[-1])
        raise EngineError(f"the package index cannot be reached, to install {arguments[0]}: {why}")
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise EngineError(f"pip cannot install {arguments[0]}: {said[-1] if said else 'it says nothing'}")


def remove() -> bool:
    """Remove the environment; return whether there was one."""
    here = folder()
    with cache.explained(here.parent, "remove the load generator"):
        if not here.exists():
            return False
        shutil.rmtree(here)
    return True


def bytes_on_disk() -> int:
    """Return what the environment takes."""
    return _bytes(folder())


def _bytes(here: Path) -> int:
    return sum(path.lstat().st_size for path in _files(here))


def _files(here: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(here):
        yield from (Path(parent, name) for name in names)
