"""Expert usage that other engines recorded, taken over as a census: SGLang's counts, vLLM's routed experts."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from pytest_infer import untrusted
from pytest_infer.analysis.experts.census import Phase, counts, merged
from pytest_infer.analysis.experts.source import SCHEMA, CarriedPrompt, CensusFile, UsageSource
from pytest_infer.errors import OptionError, StorageError
from pytest_infer.measure.experts import dumps
from pytest_infer.records import ExpertSite
from pytest_infer.storage.schema import Counts, Tokens

_Ids = npt.NDArray[np.int64]
_UNKNOWN = -1
"""What vLLM writes for positions whose routing it does not know, those of a cached prefix."""


class _Choice(msgspec.Struct, frozen=True):
    routed_experts: Any = None


class _Response(msgspec.Struct, frozen=True):
    """A response of vLLM's /v1/completions or /v1/chat/completions, as far as it tells which experts were chosen."""

    choices: tuple[_Choice, ...]
    prompt_routed_experts: Any = None
    id: str | None = None


_ONE_OR_MORE = msgspec.json.Decoder(_Response | tuple[_Response, ...])
_ONE = msgspec.json.Decoder(_Response)


def census(paths: Sequence[Path], sites: tuple[ExpertSite, ...], model: str) -> CensusFile:
    """Return a census of all these files, each dump or response a prompt of it.

    Raises:
        StorageError: a file cannot be read, is of neither engine, or does not fit the model.
    """
    prompts: list[CarriedPrompt] = []
    for path in paths:
        prompts += [_of_sglang(path, sites)] if path.suffix == ".pt" else _of_vllm(path, sites)
    if not any(one.tokens.prefill or one.tokens.decode for one in prompts):
        raise StorageError(f"{paths[0]}: no selection in it")
    return CensusFile(schema=SCHEMA, sites=sites, prompts=tuple(prompts), run=paths[0].name, model=model)


def _of_sglang(path: Path, sites: tuple[ExpertSite, ...]) -> CarriedPrompt:
    """Return the counts of SGLang's recorder: it does not tell prompts' tokens from generated ones, so all are decode.

    Rows are the model's layers, or those with experts alone.
    """
    counts = dumps.read(path)
    last = sites[-1].layer
    rows = range(len(sites)) if len(counts) == len(sites) and last >= len(sites) else [site.layer for site in sites]
    if len(counts) <= max(rows) or counts.shape[1] != sites[0].slots:
        layers, experts = counts.shape
        raise StorageError(
            f"{path}: {layers} layers of {experts} experts, and the model has {sites[0].slots} experts in "
            f"{len(sites)} layers, the last of them {last}: another --model?"
        )
    found = [counts[row] for row in rows]
    tokens = round(float(np.median([row.sum() for row in found])) / sites[0].k)
    return CarriedPrompt(
        name=path.stem,
        tokens=Tokens(prefill=0, decode=tokens),
        counts=Counts(prefill=tuple((0,) * site.slots for site in sites), decode=_rows(found)),
    )


def file_of_counts(source: UsageSource, phase: Phase = Phase.DECODE) -> bytes:
    """Return the selections of a phase as SGLang's recorder writes them: a row a layer of the model, 0 without experts.

    Raises:
        OptionError: a layer has several sets of experts.
        StorageError: the prompts are of several models.
    """
    of = merged([one.census for one in source.prompts])
    layers = [site.layer for site in of.sites]
    if len(set(layers)) < len(layers) or len({site.slots for site in of.sites}) > 1:
        raise OptionError("counts by layer and expert cannot name several sets of experts: take .json")
    found = np.zeros((max(layers) + 1, of.sites[0].slots), dtype=np.int64)
    found[layers] = np.stack(counts(of, phase))
    return dumps.content(found)


def _of_vllm(path: Path, sites: tuple[ExpertSite, ...]) -> Iterator[CarriedPrompt]:
    """Yield the usage of each response of `vllm serve --enable-return-routed-experts`: JSON, or a line each.

    Source: https://docs.vllm.ai/en/v0.21.0/training/routed_experts_replay/, fields `prompt_routed_experts` and
    `routed_experts` of a choice, lists of shape (tokens, MoE layers, k); a string is a `.npy` in base64.
    """
    for number, response in enumerate(_responses(path)):
        name = response.id or f"{path.stem}-{number + 1}"
        prompt = _ids(response.prompt_routed_experts, sites, f"{path}: {name}")
        made = [_ids(choice.routed_experts, sites, f"{path}: {name}") for choice in response.choices]
        decode = np.concatenate([np.empty((0, len(sites), sites[0].k), dtype=np.int64), *made])
        yield CarriedPrompt(
            name=name,
            tokens=Tokens(prefill=len(prompt), decode=len(decode)),
            counts=Counts(prefill=_counted(prompt, sites), decode=_counted(decode, sites)),
        )


def _responses(path: Path) -> Sequence[_Response]:
    try:
        content = untrusted.read(path, untrusted.RUN_BYTES)
        if path.suffix == ".jsonl":
            return [untrusted.decode(_ONE, line) for _, line in untrusted.lines(content)]
        found = untrusted.decode(_ONE_OR_MORE, content)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from error
    except untrusted.Damaged as error:
        raise StorageError(
            f"{path}: neither SGLang's recording (.pt) nor vLLM's responses (.json, .jsonl): {error}"
        ) from error
    return found if isinstance(found, tuple) else [found]


def _ids(given: Any, sites: tuple[ExpertSite, ...], where: str) -> _Ids:
    """Return the choices of the tokens that are known, shape (tokens, sites, k)."""
    shape = (len(sites), sites[0].k)
    try:
        if isinstance(given, str):
            given = np.load(io.BytesIO(base64.b64decode(given, validate=True)), allow_pickle=False)
        ids = np.asarray([] if given is None else given)
    except (ValueError, binascii.Error, EOFError) as error:
        raise StorageError(f"{where}: routed experts that are no array: {error}") from error
    if not ids.size:
        return np.empty((0, *shape), dtype=np.int64)
    if ids.dtype.kind not in "iu":
        raise StorageError(f"{where}: routed experts that are no whole numbers")
    if ids.ndim != 3 or ids.shape[1:] != shape:
        raise StorageError(
            f"{where}: routed experts of shape {ids.shape}, and the model has {shape[0]} layers, top {shape[1]}"
        )
    known: _Ids = ids[(ids != _UNKNOWN).all(axis=(1, 2))].astype(np.int64)
    outside = known[(known < 0) | (known >= sites[0].slots)]
    if outside.size:
        raise StorageError(f"{where}: expert {outside[0]}, and the model has {sites[0].slots}: another --model?")
    ordered = np.sort(known, axis=2)
    again = ordered[:, :, 1:][ordered[:, :, 1:] == ordered[:, :, :-1]]
    if again.size:
        raise StorageError(f"{where}: expert {again[0]} twice for one token, which no router chooses")
    return known


def _counted(ids: _Ids, sites: tuple[ExpertSite, ...]) -> tuple[tuple[int, ...], ...]:
    return _rows([np.bincount(ids[:, n].ravel(), minlength=site.slots) for n, site in enumerate(sites)])


def _rows(counts: Sequence[npt.NDArray[Any]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(n) for n in row) for row in counts)
