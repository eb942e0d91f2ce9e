"""The sidecar of a run file: raw stamps and ids per round, traces and scores, as `.npz` with the run file's name."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from pytest_infer import untrusted
from pytest_infer.errors import StorageError
from pytest_infer.metrics.breakdown import DECODE, PREFILL
from pytest_infer.records import Profile, PromptRecord, Round, Scores
from pytest_infer.storage.files import replacing
from pytest_infer.units import size

MOST_BYTES = 2**29
_MOST_RATIO = 64
"""A sidecar may unpack to so many bytes, or to so many times its own: what a large run holds is no small bomb."""

_KINDS = {
    **dict.fromkeys(
        ("stamps_ns", "tick_sizes", "token_ids", "text_sizes", "at_ns", "rss_bytes", "read_bytes", "write_bytes"),
        ("i", 1),
    ),
    "core_busy_s": ("f", 2),
    **dict.fromkeys(("start_ns", "first_token_ns", "end_ns"), ("i", 0)),
    "tokens": ("i", 2),
    "top_ids": ("i", 3),
    "top": ("f", 3),
    **dict.fromkeys(("chosen", "rest"), ("f", 2)),
    "kl": ("f", 1),
    **dict.fromkeys(("pieces", "texts"), ("u", 1)),
    "requests": ("f", 2),
    "request_tokens": ("i", 2),
}
"""The kind of numbers and how many dimensions, by what is kept."""
_SCORES = {"tokens": "<i4", "chosen": "<f4", "top_ids": "<i4", "top": "<f4", "rest": "<f4"}
_PIECES: msgspec.json.Decoder[dict[int, str]] = msgspec.json.Decoder(dict[int, str])
_OF_A_PART = {(-2, "experts"): ("u", 2), (-2, "gates"): ("f", 2), (-3, "breakdown"): ("f", 2)}
"""The same of what has the name of a layer or a role at the end of its key, by what stands before that, and where."""
_AS_LONG_AS = {
    **dict.fromkeys(("tick_sizes", "text_sizes"), "stamps_ns"),
    **dict.fromkeys(("rss_bytes", "read_bytes", "write_bytes", "core_busy_s"), "at_ns"),
}


def path_for(run_file: Path) -> Path:
    """Return where a run file's arrays lie: the same name with `.npz`."""
    return run_file.with_suffix(".npz")


def expert_key(nodeid: str, site: str) -> str:
    """Return the key of a site's trace of selections."""
    return f"{nodeid}|experts|{site}"


def gates_key(nodeid: str, site: str) -> str:
    """Return the key of the gate weights of a site's trace."""
    return f"{nodeid}|gates|{site}"


def layers_key(nodeid: str, phase: str, role: str) -> str:
    """Return the key of what a role took in each layer."""
    return f"{nodeid}|breakdown|{phase}|{role}"


def write(run_file: Path, records: Iterable[PromptRecord], others: Mapping[str, PromptRecord] | None = None) -> Path:
    """Write the arrays of a run's records beside its file and return the path.

    `others` are the other side's by test, in a run that compares two commits: of these stamps are kept, keyed
    `NODEID|before|r|stamps_ns`.

    Per record and round r, keyed `NODEID|r|WHAT`: `stamps_ns` (int64, ticks; nanoseconds since the round's start),
    `tick_sizes` (int32, ticks; tokens that came with each), `token_ids` (int32, tokens).
    Where nobody told the ids there are none, and `texts` (uint8, the pieces in UTF-8 one after another) and
    `text_sizes` (int32, ticks; bytes of each piece) instead.
    With --infer-experts=trace also, keyed `NODEID|experts|SITE`: the slots that each token selected (uint8, or uint16
    above 256 slots; tokens in order of position, those of the prompt first, x k), and `NODEID|gates|SITE` their gate
    weights (float32, alike). An A/B run and a sweep keep them too, for what follows a reference.

    Of a profile round with scores, keyed `NODEID|scores|WHAT`, as `records.Scores` has them: `tokens` (int32,
    sequences x positions), `chosen` and `rest` (float32, alike), `top_ids` (int32) and `top` (float32, both sequences x
    positions x width). Where a reference was followed, `NODEID|reference|WHAT` are the reference's own, and `kl`
    (float64, positions) where it is exact. `NODEID|pieces` (uint8): the texts of single ids, a JSON object in UTF-8.

    Of a profile round with a timeline, keyed `NODEID|timeline|WHAT`, what could be read of: `at_ns` (int64, samples;
    since the round's start), `rss_bytes` (int64, samples), `core_busy_s` (float64, samples x cores), `read_bytes` and
    `write_bytes` (int64, samples), these three since the first sample; and the marks `start_ns` (0), `first_token_ns`
    and `end_ns` (int64, no dimension; since the round's start), the last two where there was a token.

    Of a load test, keyed `NODEID|r|requests`: when each request of repetition r was due and sent, when its first and
    last token came, and its end, seconds since the first of all these (float64, requests x 5; NaN for what never was),
    and `NODEID|r|request_tokens`: of its prompt and its answer (int32, requests x 2; -1 where unknown).

    Of a breakdown, keyed `NODEID|breakdown|PHASE|ROLE`, for roles within numbered layers: their numbers, and the mean
    self time of a typical step in each, seconds (float64, 2 x layers).
    """
    # Imported late: loading the plugin must not load numpy.
    import numpy as np  # noqa: PLC0415

    arrays: dict[str, Any] = {}
    for record in records:
        other = (others or {}).get(record.nodeid)
        for number, r in enumerate(other.rounds if other is not None else ()):
            arrays[f"{record.nodeid}|before|{number}|stamps_ns"] = _stamps(r)
        for number, r in enumerate(record.rounds):
            key = f"{record.nodeid}|{number}|"
            arrays[key + "stamps_ns"] = _stamps(r)
            arrays[key + "tick_sizes"] = np.asarray(r.trace.tick_sizes, dtype=np.int32)
            arrays[key + "token_ids"] = np.asarray(r.trace.token_ids, dtype=np.int32)
            if r.trace.texts is not None:
                pieces = [piece.encode() for piece in r.trace.texts]
                arrays[key + "texts"] = np.frombuffer(b"".join(pieces), dtype=np.uint8)
                arrays[key + "text_sizes"] = np.asarray([len(piece) for piece in pieces], dtype=np.int32)
        arrays |= _requests(record)
        usage = record.profile.experts if record.profile is not None else None
        if usage is not None and usage.trace is not None:
            tokens = usage.prefill_tokens + usage.decode_tokens
            for site, trace in zip(usage.sites, usage.trace, strict=True):
                dtype = "<u1" if len(trace) == tokens * site.k else "<u2"
                arrays[expert_key(record.nodeid, site.name)] = np.frombuffer(trace, dtype=dtype).reshape(-1, site.k)
        if usage is not None and usage.trace is not None and usage.trace_weights is not None:
            for site, gates in zip(usage.sites, usage.trace_weights, strict=True):
                arrays[gates_key(record.nodeid, site.name)] = np.frombuffer(gates, dtype="<f4").reshape(-1, site.k)
        if record.profile is not None:
            named = _timeline(record.profile)
            arrays |= {f"{record.nodeid}|timeline|{what}": array for what, array in named.items()}
        arrays |= _scored(record)
        arrays |= _layers(record)
    path = path_for(run_file)
    with replacing(path) as file:
        np.savez_compressed(file, **arrays)
    path.chmod(0o644)
    return path


def _requests(record: PromptRecord) -> dict[str, Any]:
    """Return the stamps and the tokens of a load test's requests."""
    import numpy as np  # noqa: PLC0415

    arrays: dict[str, Any] = {}
    for number, repetition in enumerate(() if record.under_load is None else record.under_load.repetitions):
        stamps = np.array(
            [[r.due_s, r.sent_s, r.first_s, r.last_s, r.end_s] for r in repetition.requests], dtype=np.float64
        ).reshape(-1, 5)
        tokens = [[-1 if n is None else n for n in (r.prompt_tokens, r.output_tokens)] for r in repetition.requests]
        first = np.nanmin(stamps) if np.isfinite(stamps).any() else 0.0
        arrays[f"{record.nodeid}|{number}|requests"] = stamps - first
        arrays[f"{record.nodeid}|{number}|request_tokens"] = np.asarray(tokens, dtype=np.int32).reshape(-1, 2)
    return arrays


def _stamps(r: Round) -> Any:
    import numpy as np  # noqa: PLC0415

    return np.asarray(r.trace.stamps_ns, dtype=np.int64) - r.trace.start_ns


def _timeline(profile: Profile) -> dict[str, Any]:
    """Return the arrays of the profile round's timeline, none without one."""
    import numpy as np  # noqa: PLC0415

    timeline, trace = profile.timeline, profile.trace
    if timeline is None:
        return {}
    named = {"at_ns": np.asarray(timeline.at_ns, dtype=np.int64) - trace.start_ns, "start_ns": np.int64(0)}
    for what in ("rss_bytes", "read_bytes", "write_bytes"):
        values = getattr(timeline, what)
        named |= {} if values is None else {what: np.asarray(values, dtype=np.int64)}
    if timeline.core_busy_s is not None:
        named["core_busy_s"] = np.asarray(timeline.core_busy_s, dtype=np.float64)
    if trace.stamps_ns:
        named["first_token_ns"] = np.int64(trace.stamps_ns[0] - trace.start_ns)
        named["end_ns"] = np.int64(trace.stamps_ns[-1] - trace.start_ns)
    return named


def _scored(record: PromptRecord) -> dict[str, Any]:
    """Return the arrays of a record's scores, of those of its reference, and the texts of the tokens in them."""
    import numpy as np  # noqa: PLC0415

    reference, profile = record.reference, record.profile
    kinds = {
        "scores": None if profile is None else profile.scores,
        "reference": None if reference is None else reference.scores,
    }
    named: dict[str, Any] = {
        f"{record.nodeid}|{kind}|{what}": np.frombuffer(getattr(scores, what), dtype).reshape(_shape(scores, what))
        for kind, scores in kinds.items()
        if scores is not None
        for what, dtype in _SCORES.items()
    }
    if reference is not None and reference.kl is not None:
        named[f"{record.nodeid}|reference|kl"] = np.frombuffer(reference.kl, "<f8")
    if record.pieces:
        texts = {str(number): text for number, text in record.pieces.items()}
        named[f"{record.nodeid}|pieces"] = np.frombuffer(msgspec.json.encode(texts), np.uint8)
    return named


def _shape(scores: Scores, what: str) -> list[int]:
    both = [scores.sequences, scores.positions]
    return [*both, scores.width] if what.startswith("top") else both


def scores(arrays: Mapping[str, Any], nodeid: str, kind: str = "scores") -> Scores | None:
    """Return the scores of a test from a sidecar's arrays, or with "reference" those of its reference; None without.

    Their `vocabulary` is not kept: it is 0.
    """
    keys = {what: f"{nodeid}|{kind}|{what}" for what in _SCORES}
    if not arrays.keys() >= set(keys.values()):
        return None
    found = {what: arrays[key] for what, key in keys.items()}
    sequences, positions, width = found["top"].shape
    return Scores(
        sequences=sequences,
        positions=positions,
        width=width,
        vocabulary=0,
        **{what: found[what].astype(dtype).tobytes() for what, dtype in _SCORES.items()},
    )


def pieces(arrays: Mapping[str, Any], nodeid: str) -> dict[int, str]:
    """Return the texts of single ids; raise StorageError where they cannot be read."""
    found = arrays.get(f"{nodeid}|pieces")
    try:
        return {} if found is None else untrusted.decode(_PIECES, found.tobytes())
    except untrusted.Damaged as error:
        raise StorageError(f"the texts of single tokens cannot be read: {error}") from error


def _layers(record: PromptRecord) -> dict[str, Any]:
    """Return what each role took in each layer, none without a breakdown."""
    import numpy as np  # noqa: PLC0415

    if record.breakdown is None:
        return {}
    phases = {PREFILL: record.breakdown.prefill, DECODE: record.breakdown.decode}
    return {
        layers_key(record.nodeid, name, one.role): np.asarray([one.layers, np.divide(one.layer_ns, 1e9)])
        for name, times in phases.items()
        for one in (() if times is None else times.roles)
        if one.layers
    }


def read(run_file: Path) -> dict[str, Any]:
    """Return the arrays beside a run file, keyed as `write` says; empty where there is no sidecar.

    Sizes are known before anything is unpacked: of the members from the archive's directory, of an array from its
    header, and kind and dimensions of those that `write` makes are checked.

    Raises StorageError where it cannot be read.
    """
    path = path_for(run_file)
    if not path.exists():
        return {}
    try:
        # Opened here, as zipfile leaves a damaged file open.
        with untrusted.opened(path) as file, zipfile.ZipFile(file) as archive:
            return _arrays(archive, max(MOST_BYTES, _MOST_RATIO * path.stat().st_size))
    except Exception as error:  # damage ends in whatever zipfile, zlib, tokenize and numpy raise
        raise StorageError(f"{path.name} cannot be read: {untrusted.reason(error)}") from error


def _arrays(archive: zipfile.ZipFile, most: int) -> dict[str, Any]:
    members = archive.infolist()
    unpacked = sum(member.file_size for member in members)
    if unpacked > most:
        raise untrusted.Damaged(f"it would unpack to {size(unpacked)}, and at most {size(most)} are read")
    found = {}
    for member in members:
        key = member.filename.removesuffix(".npy")
        # From its end, as a test's id may hold any of this.
        parts = ["", "", *key.split("|")]
        told = (kind for (place, part), kind in _OF_A_PART.items() if parts[place] == part)
        found[key] = _array(archive.read(member), *next(told, _KINDS.get(parts[-1], (None, None))))
    _check_together(found)
    return found


def _array(content: bytes, kind: str | None, dimensions: int | None) -> Any:
    """Return an array of a `.npy`; raise ValueError unless it is whole, of that kind of numbers and dimensions."""
    import numpy as np  # noqa: PLC0415

    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = reader(file)
    held = len(content) - file.tell()
    fits = kind in (None, dtype.kind) and dimensions in (None, len(shape)) and not fortran
    if not fits or math.prod(shape) * dtype.itemsize != held:
        raise untrusted.Damaged(f"an array of {dtype} and shape {shape} in {held} bytes")
    return np.frombuffer(content, dtype=dtype, offset=file.tell()).reshape(shape)


def _check_together(arrays: Mapping[str, Any]) -> None:
    """Raise ValueError where arrays that belong together are not of one length."""
    for key in arrays:
        head, _, what = key.rpartition("|")
        if what in _SCORES:
            _check_scores(arrays, head)
    for key, array in arrays.items():
        head, _, what = key.rpartition("|")
        whole = arrays.get(f"{head}|{_AS_LONG_AS.get(what, '')}")
        if whole is not None and len(array) != len(whole):
            raise untrusted.Damaged(f"{what} has {len(array)} entries, not {len(whole)}")


def _check_scores(arrays: Mapping[str, Any], head: str) -> None:
    shapes = {what: getattr(arrays.get(f"{head}|{what}"), "shape", None) for what in _SCORES}
    top = shapes["top"]
    if top is None or any(shape != (top if what.startswith("top") else top[:2]) for what, shape in shapes.items()):
        raise untrusted.Damaged(f"scores of different shapes: {shapes}")
