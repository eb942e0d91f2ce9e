"""Turns the fetched packages into documents, split into a training and a held-out part."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, cast

import sources

Kind: TypeAlias = Literal["prose", "country", "code", "docs"]

#: One unit in this many goes to the held-out part.
HELD_OUT_EVERY = 40
#: A book is cut into units of about this many characters before the split.
BOOK_UNIT_CHARS = 6000
#: Longer source files are mostly tables; they would crowd out the rest.
MAX_FILE_CHARS = 40_000

#: Prose only: the verse, the plays and the King James Bible of the package are left out as archaic.
BOOKS = (
    "austen-emma",
    "austen-persuasion",
    "austen-sense",
    "bryant-stories",
    "burgess-busterbrown",
    "carroll-alice",
    "chesterton-ball",
    "chesterton-brown",
    "chesterton-thursday",
    "edgeworth-parents",
    "melville-moby_dick",
)
#: Books in simple language, seen twice as often.
SIMPLE_BOOKS = frozenset({"bryant-stories", "burgess-busterbrown", "carroll-alice"})
CODE_PACKAGES = (sources.ALGORITHMS, sources.MORE_ITERTOOLS, sources.TOOLZ)
DOCS_PARTS = {
    sources.NETWORKX: ("networkx/algorithms/",),
    sources.KERAS: ("keras/src/layers/", "keras/src/optimizers/", "keras/src/losses/", "keras/src/models/"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A piece of source text that goes to one part as a whole, so that no held-out text is trained on."""

    kind: Kind
    name: str
    text: str
    repeat: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """All units, split."""

    train: tuple[Unit, ...]
    held_out: tuple[Unit, ...]


def load(archives: Mapping[sources.Package, Path]) -> Corpus:
    """Read every source and split it unit by unit; the split depends on the order alone."""
    units = [*_books(archives), *_countries(archives), *_code(archives), *_docs(archives)]
    held_out = tuple(unit for index, unit in enumerate(units) if index % HELD_OUT_EVERY == HELD_OUT_EVERY // 2)
    train = tuple(unit for index, unit in enumerate(units) if index % HELD_OUT_EVERY != HELD_OUT_EVERY // 2)
    return Corpus(train=train, held_out=held_out)


def documents(units: Iterable[Unit]) -> list[str]:
    """One text a document; neighbouring units of a book are joined again, so that long contexts cohere."""
    joined: list[str] = []
    previous = None
    for unit in units:
        if unit.kind == "prose" and previous == unit.name:
            joined[-1] = f"{joined[-1]}\n\n{unit.text}"
        else:
            joined.append(unit.text)
        previous = unit.name
    repeated = [unit.text for unit in units for _ in range(unit.repeat - 1)]
    return joined + repeated


def _books(archives: Mapping[sources.Package, Path]) -> Iterator[Unit]:
    texts = sources.read_members(archives[sources.GUTENBERG], ".txt")
    for name in BOOKS:
        raw = texts[f"package/gutenberg/{name}.txt"].decode("latin-1")
        repeat = 2 if name in SIMPLE_BOOKS else 1
        for text in _blocks(paragraphs(raw)):
            yield Unit(kind="prose", name=name, text=text, repeat=repeat)


def paragraphs(raw: str) -> list[str]:
    """A book's paragraphs, unwrapped, without its title line, the emphasis marks and any licence boilerplate."""
    text = raw.replace("\r\n", "\n").split("*END THE SMALL PRINT", 1)[0]
    text = re.sub(r"\A\s*\[.*?\]", "", text, flags=re.DOTALL).replace("_", "")
    unwrapped = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    return [part for part in unwrapped if part and "Project Gutenberg" not in part]


def _blocks(parts: Iterable[str]) -> Iterator[str]:
    block: list[str] = []
    for part in parts:
        block.append(part)
        if sum(map(len, block)) >= BOOK_UNIT_CHARS:
            yield "\n\n".join(block)
            block = []
    if block:
        yield "\n\n".join(block)


def _countries(archives: Mapping[sources.Package, Path]) -> Iterator[Unit]:
    for name, raw in sources.read_members(archives[sources.FACTBOOK], ".json").items():
        profile = json.loads(raw)
        if "Government" in profile and (article := _article(profile)):
            yield Unit(kind="country", name=name, text=article)


def _article(profile: Mapping[str, object]) -> str:
    """A country as an article of full sentences; empty when the profile names no country."""
    country = _field(profile, "Government", "Country name", "conventional short form")
    if not country or country == "none":
        return ""
    capital = _field(profile, "Government", "Capital", "name").split(";")[0].split("(")[0].strip()
    location = _field(profile, "Geography", "Location").split(";")[0]
    facts = [f"The capital of {country} is {capital}."] if capital and "none" not in capital else []
    facts += [f"{country} is located in {location}."] if location else []
    parts = [country, " ".join(facts)]
    parts += [
        _field(profile, section, field)
        for section, field in (
            ("Introduction", "Background"),
            ("Economy", "Economy - overview"),
            ("Geography", "Climate"),
            ("Government", "Flag description"),
            ("People and Society", "Demographic profile"),
        )
    ]
    return "\n\n".join(part for part in parts if part)


def _field(profile: Mapping[str, object], *path: str) -> str:
    """The text at a path of a factbook profile, or an empty string."""
    node: object = profile
    for key in (*path, "text"):
        node = cast("dict[str, object]", node).get(key) if isinstance(node, dict) else None
    return node if isinstance(node, str) else ""


def _code(archives: Mapping[sources.Package, Path]) -> Iterator[Unit]:
    for package in CODE_PACKAGES:
        for name, text in _python_files(archives[package]):
            yield Unit(kind="code", name=name, text=text)


def _docs(archives: Mapping[sources.Package, Path]) -> Iterator[Unit]:
    for package, prefixes in DOCS_PARTS.items():
        for name, text in _python_files(archives[package]):
            if name.startswith(prefixes) and (docs := "\n\n".join(docstrings(text))):
                yield Unit(kind="docs", name=name, text=docs)


def _python_files(archive: Path) -> Iterator[tuple[str, str]]:
    for name, raw in sources.read_members(archive, ".py").items():
        text = raw.decode()
        if "test" not in name and not name.endswith("__init__.py") and 200 < len(text) <= MAX_FILE_CHARS:
            yield name, text.strip()


def docstrings(source: str) -> list[str]:
    """The docstrings of a module, its classes and functions, in order."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, documented))
    return [text for node in nodes if (text := ast.get_docstring(node)) and len(text) > 80]
