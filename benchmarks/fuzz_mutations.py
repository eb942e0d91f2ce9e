"""How fuzz.py damages a file: its bytes, a value of its JSON, its arrays, or what kind of file it is."""

from __future__ import annotations

import copy
import io
import json
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Mutation = Callable[[bytes, random.Random], bytes]

DEEP = json.loads("[" * 400 + "]" * 400)
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**30, -(10**400), 1e308, -1e308, 5e-324, 0.5,
    "", "x", "\u0000", "\ud7ff\u2028", "9" * 5000, "../../x", [], {}, [[]], [1], ["x"], {"x": 1}, DEEP,
)  # fmt: skip
CHUNKS = (
    b"\xff",
    b"\0",
    b'"',
    b"{",
    b"[" * 3000,
    b"\xed\xa0\x80",
    b"9" * 400,
    b"NaN",
    b"\n",
    b"\xef\xbb\xbf",
    b"\\u",
    b"1e999",
)


def bytes_mutated(content: bytes, chance: random.Random) -> bytes:
    """Return bytes with one to four changes."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        at = chance.randrange(len(data) + 1)
        length = chance.choice((1, 1, 4, 40, 400))
        match chance.randrange(6):
            case 0 if at < len(data):
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                data[at:at] = chance.choice(CHUNKS)
            case 2:
                del data[at : at + length]
            case 3:
                del data[at:]
            case 4:
                data[at:at] = data[at : at + length] * chance.choice((1, 2, 50))
            case _:
                data[at : at + length] = chance.randbytes(length)
    return bytes(data)


def value_mutated(content: bytes, chance: random.Random) -> bytes:
    """Return JSON with one to three values changed, moved or taken away."""
    tree = json.loads(content)
    for _ in range(chance.choice((1, 1, 2, 3))):
        holder, key = _place(tree, chance)
        if holder is None:
            continue
        match chance.randrange(5):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[chance.choice(("schema", "value", "phase", "x"))] = holder.pop(key)
            case 2 if isinstance(holder, list):
                holder.append(copy.deepcopy(holder[key]))
            case 3:
                other, at = _place(tree, chance)
                holder[key] = json.loads(json.dumps(other[at])) if other is not None else None
            case _:
                holder[key] = copy.deepcopy(chance.choice(VALUES))
    return json.dumps(tree, indent=chance.choice((None, 4))).encode("utf-8", "surrogatepass")


def _place(tree: Any, chance: random.Random) -> tuple[Any, Any]:
    """Return a holder and a key of it, anywhere in a tree; deep places as often as shallow ones."""
    holder, key, left = None, None, chance.randrange(1, 12)
    while left and isinstance(tree, dict | list) and tree:
        holder, key = tree, chance.choice(list(tree)) if isinstance(tree, dict) else chance.randrange(len(tree))
        tree, left = holder[key], left - 1
    return holder, key


def line_mutated(content: bytes, chance: random.Random) -> bytes:
    """Return lines of JSON, one of them changed as a value."""
    lines = content.splitlines(keepends=True)
    at = chance.randrange(len(lines))
    lines[at] = value_mutated(lines[at], chance).replace(b"\n", b" ") + b"\n"
    return b"".join(lines)


def arrays_mutated(content: bytes, chance: random.Random) -> bytes:
    """Return an archive of arrays with some of another kind, length or size, or a member that unpacks to gigabytes."""
    with np.load(io.BytesIO(content)) as held:
        arrays = {key: held[key] for key in held.files}
    for key in chance.sample(sorted(arrays), k=min(len(arrays), 3)):
        made: tuple[Any, ...] = (
            arrays[key][:1] if arrays[key].ndim else arrays[key],
            np.asarray(arrays[key]).astype(np.float64),
            np.zeros((3, 3), dtype=np.int64),
            np.array(["text"]),
            np.array([], dtype=np.int64),
            np.full(5, -(2**62)),
            np.int64(-1),
        )
        arrays[key] = chance.choice(made)
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    if chance.randrange(50) == 0:
        with (
            zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive,
            archive.open("t|0|stamps_ns.npy", "w") as member,
        ):
            for _ in range(700):
                member.write(bytes(2**20))
    return file.getvalue()


def header_mutated(content: bytes, chance: random.Random) -> bytes:
    """Return a safetensors file whose header has another value somewhere, and mostly its own length."""
    length = int.from_bytes(content[:8], "little")
    header = value_mutated(content[8 : 8 + length], chance)
    said = len(header) if chance.randrange(4) else chance.choice((0, 2**63, 10**8, len(header) - 1))
    return said.to_bytes(8, "little") + header + content[8 + length :]


def header_bytes_mutated(content: bytes, chance: random.Random) -> bytes:
    """Return a file whose first 400 bytes have changed."""
    return bytes_mutated(content[:400], chance) + content[400:]


def no_file(path: Path, chance: random.Random) -> None:
    """Put something there that is no file."""
    match chance.randrange(5):
        case 0:
            os.mkfifo(path)
        case 1:
            path.symlink_to(chance.choice(("/dev/zero", "/dev/null", "/dev/tty")))
        case 2:
            path.mkdir()
        case 3:
            path.symlink_to(path.name)  # a circle
        case _:
            with path.open("wb") as file:
                file.truncate(2**40)
