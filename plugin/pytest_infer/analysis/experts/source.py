"""Where expert usage comes from: a stored run, or a census in a file of its own that another machine wrote."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from pytest_infer import untrusted
from pytest_infer.analysis import alike
from pytest_infer.analysis.experts import recorded
from pytest_infer.errors import StorageError
from pytest_infer.metrics import experts
from pytest_infer.records import ExpertSite
from pytest_infer.storage.runs import Row, Run, model_names
from pytest_infer.storage.schema import Counts, Tokens, Usage

if TYPE_CHECKING:
    from pytest_infer.analysis.experts.census import Census
    from pytest_infer.analysis.experts.suite import PromptUsage

SCHEMA = 2
_KV_CACHE = "kv_cache_bytes"


class CarriedPrompt(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one prompt selected: a row of counts a site, in the order of the file's sites."""

    name: str
    tokens: Tokens
    counts: Counts
    tags: tuple[str, ...] = ()
    group: str | None = None
    content: str | None = None


class CensusFile(msgspec.Struct, frozen=True, omit_defaults=True):
    """A census as `experts export` and `experts import` write it; bytes are those of the model where it was counted."""

    schema: int
    sites: tuple[ExpertSite, ...]
    prompts: tuple[CarriedPrompt, ...]
    run: str | None = None
    model: str | None = None
    parameter_bytes: int | None = None
    read_bytes: int | None = None
    kv_cache_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageSource:
    """The usage of several prompts, each of another text, and what is known of the model and the machine.

    `probed` has the bandwidth of the side where the model ran, "cpu" or "gpu", bytes/s: none in a file, which another
    machine wrote. `sizes_apart` are the run's configurations whose experts differ in size, none where all are alike.
    """

    label: str
    model: str | None
    path: Path
    prompts: tuple[PromptUsage, ...]
    parameter_bytes: int | None = None
    read_bytes: int | None = None
    kv_cache_bytes: int | None = None
    sizes_apart: tuple[str, ...] = ()
    probed: Mapping[str, float] = field(default_factory=dict)

    @property
    def sites(self) -> tuple[ExpertSite, ...]:
        """Return the places where tokens are routed to experts, without sizes where the prompts' differ."""
        from pytest_infer.analysis.experts import census  # noqa: PLC0415 - numpy; whoever has a census has loaded it

        return census.sites_of([one.census for one in self.prompts])


def of_run(run: Run, rows: Sequence[Row]) -> UsageSource:
    """Return the usage of a run's tests."""
    row = rows[0]
    work, cache = row.model.work, [one.metrics[_KV_CACHE].value for one in rows if _KV_CACHE in one.metrics]
    return UsageSource(
        label=run.label,
        model=model_names([one.model for one in rows]),
        path=run.path,
        prompts=tuple(recorded.prompts_of(run, rows)),
        parameter_bytes=row.model.parameter_bytes,
        read_bytes=None if work is None else work.read_bytes,
        kv_cache_bytes=max((int(value) for value in cache if not isinstance(value, str)), default=None),
        sizes_apart=recorded.sizes_apart(rows),
        probed=_probed(rows),
    )


def _probed(rows: Sequence[Row]) -> dict[str, float]:
    for row in rows:
        probe = row.machine.probe
        if probe is not None and probe.read_bandwidth is not None:
            return {"cpu" if (probe.device or "cpu").startswith("cpu") else "gpu": probe.read_bandwidth}
    return {}


def of_file(path: Path, keyword: str | None = None) -> UsageSource:
    """Return the usage in a census file, of the prompts whose name holds the keyword.

    Raises:
        StorageError: it cannot be read, is no census, contradicts itself, or has no such prompt.
    """
    return of_census(_read(path), path, keyword)


def of_census(held: CensusFile, path: Path, keyword: str | None = None) -> UsageSource:
    """Return the usage in a census that lies, or will lie, at a path; raises StorageError as `of_file` does."""
    from pytest_infer.analysis.experts.suite import PromptUsage  # noqa: PLC0415

    # What another engine recorded may be called alike: those are other texts unless the file says that they are one.
    names = alike.unique(one.name for one in held.prompts)
    named = [msgspec.structs.replace(one, name=name) for one, name in zip(held.prompts, names, strict=True)]
    chosen = [one for one in named if keyword is None or keyword in one.name]
    if not chosen:
        raise StorageError(f"{path}: no prompt in this census" + (f" whose name holds {keyword!r}" if keyword else ""))
    contents = [one.content or one.name for one in chosen]
    worths = [experts.worth(one.tokens.prefill + one.tokens.decode, 1, trace=False) for one in chosen]
    try:
        prompts = [
            PromptUsage(
                name=chosen[n].name,
                content=contents[n],
                census=_census(held.sites, chosen[n]),
                tags=chosen[n].tags,
                group=chosen[n].group,
            )
            for n in experts.one_each(contents, worths)
        ]
    except StorageError as error:
        raise StorageError(f"{path}: {error}") from None
    return UsageSource(
        label=held.run or path.name,
        model=held.model,
        path=path,
        prompts=tuple(prompts),
        parameter_bytes=held.parameter_bytes,
        read_bytes=held.read_bytes,
        kv_cache_bytes=held.kv_cache_bytes,
    )


def carried(one: PromptUsage) -> CarriedPrompt:
    """Return a prompt's usage as a census file holds it."""
    found = one.census
    return CarriedPrompt(
        name=one.name,
        tokens=Tokens(prefill=found.prefill_tokens, decode=found.decode_tokens),
        counts=Counts(
            prefill=tuple(tuple(row.tolist()) for row in found.prefill),
            decode=tuple(tuple(row.tolist()) for row in found.decode),
        ),
        tags=one.tags,
        group=one.group,
        content=one.content,
    )


def _read(path: Path) -> CensusFile:
    try:
        content = untrusted.read(path, untrusted.RUN_BYTES)
        held = untrusted.decode(msgspec.json.Decoder(CensusFile), content)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from error
    except untrusted.Damaged as error:
        raise StorageError(f"{path}: no census: {error}") from error
    if held.schema != SCHEMA:
        raise StorageError(f"{path}: a census of schema {held.schema}, and {SCHEMA} is read here: export it again")
    return held


class _Keys(msgspec.Struct, frozen=True):
    """What a census has and no run."""

    sites: msgspec.Raw
    prompts: msgspec.Raw


def is_census(path: Path) -> bool:
    """Return whether a file is a census, however it is laid out: by its first key, or where that is another by all."""
    if path.suffix != ".json" or not untrusted.is_file(path):
        return False
    try:
        with untrusted.opened(path) as file:
            begin = b"".join(file.read(64).removeprefix(codecs.BOM_UTF8).split())
        if begin.startswith((b'{"schema":', b'{"machine_info":')):
            return begin.startswith(b'{"schema":')
        untrusted.decode(msgspec.json.Decoder(_Keys), untrusted.read(path, untrusted.RUN_BYTES))
    except (OSError, untrusted.Damaged):
        return False
    return True


def _census(sites: tuple[ExpertSite, ...], one: CarriedPrompt) -> Census:
    from pytest_infer.analysis.experts import census  # noqa: PLC0415

    found = census.of(Usage(sites=sites, counts=one.counts, tokens=one.tokens))
    if found is None:
        raise StorageError("a census without sites")
    return found
