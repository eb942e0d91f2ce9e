"""Fidelity of stored tests: their scores lie beside the run, those of this run are still in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_infer.analysis.fidelity import closeness
from pytest_infer.errors import StorageError
from pytest_infer.metrics import fidelity as figures
from pytest_infer.records import Fidelity, PromptRecord
from pytest_infer.storage import sidecar
from pytest_infer.storage.runs import Row
from pytest_infer.storage.schema import Values

if TYPE_CHECKING:
    # Imported late, here and below: runs without scores are compared without numpy.
    from pytest_infer.analysis.fidelity.distributions import Array
    from pytest_infer.analysis.fidelity.measured import Told
    from pytest_infer.analysis.fidelity.routing import Routed
    from pytest_infer.analysis.fidelity.tokens import Token

_NOT_FINITE = "no position has finite logits on both sides"


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """A test beside another: how far apart they are, in words too, and each token."""

    fidelity: Fidelity
    tokens: tuple[Token, ...]
    told: str


@dataclass(slots=True)
class Scored:
    """What tests told of their texts. `fresh` are the records of a run that is not stored yet; files are read once."""

    fresh: Mapping[str, PromptRecord] = field(default_factory=dict)
    _read: dict[Path, Mapping[str, Any]] = field(default_factory=dict)

    def of(self, row: Row) -> Told | str:
        """Return what a test told, or why that is not known."""
        if row.run is None:
            record = self.fresh.get(row.test)
            return "this run kept no scores" if record is None else _of_record(record)
        if row.scores is None or row.scores.positions is None:
            return (row.scores.absent if row.scores is not None else None) or "it was measured without scores"
        try:
            arrays = self._arrays(row.run)
            scores, pieces = sidecar.scores(arrays, row.test), sidecar.pieces(arrays, row.test)
        except StorageError as error:
            return str(error)
        if scores is None:
            return f"{sidecar.path_for(row.run).name} holds no scores of it"
        from pytest_infer.analysis.fidelity.measured import Told  # noqa: PLC0415

        return Told(scores=scores, routed=_routed(row, arrays), pieces=pieces)

    def followed(self, row: Row) -> tuple[Told, Array | None] | str:
        """Return what the reference that a stored test followed told, and KL at each position where it is exact."""
        if row.reference is None or row.run is None:
            return "nothing was followed: --infer-replay RUN, --infer-against REV, a sweep, or a report of two runs"
        try:
            arrays = self._arrays(row.run)
            scores, pieces = sidecar.scores(arrays, row.test, "reference"), sidecar.pieces(arrays, row.test)
        except StorageError as error:
            return str(error)
        if scores is None or row.reference.problem is not None:
            return row.reference.problem or "the reference kept no scores"
        import numpy as np  # noqa: PLC0415

        from pytest_infer.analysis.fidelity.measured import Told  # noqa: PLC0415

        kl = np.asarray(arrays.get(f"{row.test}|reference|kl", ()), dtype=np.float64)
        return Told(scores=scores, pieces=pieces), kl if len(kl) and np.isfinite(kl).all() else None

    def beside(self, row: Row, earlier: Row | None) -> Beside | str:
        """Return a stored test beside that of an earlier run, or without one beside what it followed, or why not."""
        theirs = self.of(row)
        found = self.followed(row) if earlier is None else self.of(earlier)
        if isinstance(theirs, str) or isinstance(found, str):
            return theirs if isinstance(theirs, str) else str(found)
        from pytest_infer.analysis.fidelity import measured, tokens  # noqa: PLC0415

        ours, exact = found if isinstance(found, tuple) else (found, None)
        if earlier is not None:
            known: Fidelity | str | None = between(earlier, row, self, "the earlier run")
        else:
            known = row.fidelity or measured.between(ours, theirs, "the reference", exact)
        if known is None or isinstance(known, str):
            return known or _NOT_FINITE
        hashes = [one.metrics.get("output_sha256") for one in (row, earlier) if one is not None]
        same = known.split is None if len(hashes) < 2 else None not in hashes and hashes[0] == hashes[1]
        most = closeness.bound(row.model, known if earlier is None else earlier.model)
        told = closeness.told(known, most, same=same, lengths=None if earlier is None else lengths(earlier, row))
        return Beside(fidelity=known, tokens=tokens.of(ours, theirs, exact), told=told)

    def _arrays(self, run: Path) -> Mapping[str, Any]:
        if run not in self._read:
            self._read[run] = sidecar.read(run)
        return self._read[run]


def _of_record(record: PromptRecord) -> Told | str:
    profile = record.profile
    if profile is None or profile.scores is None:
        return (profile.scores_absent if profile is not None else record.profile_absent) or "no scores were kept"
    from pytest_infer.analysis.fidelity import measured  # noqa: PLC0415

    free = record.reference.free if record.reference is not None else None
    routed = measured.routed(profile.experts)
    return measured.Told(scores=profile.scores, routed=routed, pieces=record.pieces, free=free)


def _routed(row: Row, arrays: Mapping[str, Any]) -> Routed | str:
    keys = [sidecar.expert_key(row.test, site.name) for site in row.experts.sites]
    if not keys or any(key not in arrays for key in keys):
        return row.experts.absent or "router choices were not recorded token by token"
    gates = [sidecar.gates_key(row.test, site.name) for site in row.experts.sites]
    from pytest_infer.analysis.fidelity.routing import Routed  # noqa: PLC0415

    weights = [arrays[key] for key in gates] if all(key in arrays for key in gates) else None
    return Routed(chosen=[arrays[key] for key in keys], weights=weights)


def between(before: Row, after: Row, scored: Scored, name: str) -> Fidelity | str:
    """Return how far a test is from that of another run, which is called `name`, or why that is not known."""
    if before.plain or after.plain:
        return "it was measured by pytest-benchmark alone"
    asked = {row.prompt.content_sha256 for row in (before, after)} - {None}
    if len(asked) > 1:
        return "the prompts are not the same text"
    ours, theirs = scored.of(before), scored.of(after)
    if isinstance(ours, str):
        return f"the earlier run: {ours}"
    if isinstance(theirs, str):
        return f"this run: {theirs}"
    from pytest_infer.analysis.fidelity import measured  # noqa: PLC0415

    found = measured.between(ours, theirs, name)
    if found is None:
        return _NOT_FINITE
    # What it generates freely was known when it followed these very tokens, and is not stored.
    known = after.fidelity if _follows(after, before) else None
    return found if known is None else replace(found, split=known.split)


def _follows(after: Row, before: Row) -> bool:
    output = before.metrics.get("output_sha256")
    return after.reference is not None and output is not None and after.reference.sha256 == output.value


def lengths(before: Row, after: Row) -> tuple[int, int] | None:
    """Return how many tokens both sides generated, if these are not as many, and are those that they were scored on."""
    found = []
    for row in (before, after):
        count, output = row.metrics.get("generated_tokens"), row.metrics.get("output_sha256")
        given = row.reference is not None and (output is None or row.reference.sha256 != output.value)
        found.append(None if given or count is None or isinstance(count.value, str) else int(count.value or 0))
    ours, theirs = found
    return None if ours is None or theirs is None or ours == theirs else (ours, theirs)


def with_figures(row: Row, found: Fidelity | None) -> Row:
    """Return a test whose distances are those to what it is compared with, and to nothing else."""
    metrics = {key: values for key, values in row.metrics.items() if key not in figures.OF_BOTH}
    readings = {} if found is None else {key: figures.reading(key, found) for key in figures.OF_BOTH}
    for key, read in readings.items():
        if read.value is not None:
            metrics[key] = Values(value=read.value, quality=read.quality)
    return replace(row, metrics=metrics, fidelity=found)
