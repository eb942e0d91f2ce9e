"""Steps of both sides taken apart in turns of a token: what each part took on either side, launch by launch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from pytest_infer.metrics.breakdown import DECODE, PREFILL, typical
from pytest_infer.records import PassParts, RoleTurns

Pair = tuple[PassParts, PassParts]
"""Both sides' halves of a pass, the base's first."""
Part = tuple[str, int | None]
Both = tuple[float, float]


@dataclass(slots=True)
class Observed:
    """What was observed of one launch: passes of one token, and of several."""

    short: list[Pair] = field(default_factory=list)
    long: list[Pair] = field(default_factory=list)


def roles(launches: Mapping[int, Observed], every: int) -> dict[str, tuple[RoleTurns, ...]]:
    """Return what each role took on either side in each launch, by its number, by phase; of a turn of `every` ticks.

    A phase that some launch does not have is left out.
    """
    found = {
        PREFILL: [_mean(_first(pair) for pair in (*one.short, *one.long)) for one in launches.values()],
        DECODE: [_mean(block for pair in one.long for block in _blocks(pair, every)) for one in launches.values()],
    }
    return {phase: _by_role(parts, tuple(launches)) for phase, parts in found.items() if parts and all(parts)}


def _first(pair: Pair) -> dict[Part, Both]:
    return _steps(pair, range(1))


def _blocks(pair: Pair, every: int) -> Iterable[dict[Part, Both]]:
    """Yield typical blocks of one pass: of two turns a side, of which each has one in either place; means of a step.

    Those in the middle half by how much the sides differ, for all parts the same: so their changes add up.
    """
    steps = min(len(one.self_ns[0]) if one.self_ns else 0 for one in pair)
    size = min(2 * every, steps - 1)
    if size < 1:
        return
    blocks = [_steps(pair, range(at, at + size)) for at in range(1, steps - size + 1, size)]
    for number in typical([_change(block) for block in blocks]):
        yield blocks[number]


def _steps(pair: Pair, numbers: range) -> dict[Part, Both]:
    """Return what each part took on either side, a mean over some steps; 0 where a side does not have it."""
    sides = [_side(one, numbers) for one in pair]
    return {part: (sides[0].get(part, 0.0), sides[1].get(part, 0.0)) for part in dict.fromkeys((*sides[0], *sides[1]))}


def _side(one: PassParts, numbers: range) -> dict[Part, float]:
    return {
        part: fmean(own[number] for number in numbers) for part, own in zip(one.parts, one.self_ns, strict=True) if own
    }


def _change(block: Mapping[Part, Both]) -> float:
    return sum(after - before for before, after in block.values())


def _mean(blocks: Iterable[dict[Part, Both]]) -> dict[Part, Both]:
    """Return the mean of the typical blocks of a launch."""
    every = list(blocks)
    kept = [every[number] for number in typical([_change(block) for block in every])]
    parts = dict.fromkeys(part for block in kept for part in block)
    return {
        part: (
            fmean(block.get(part, (0.0, 0.0))[0] for block in kept),
            fmean(block.get(part, (0.0, 0.0))[1] for block in kept),
        )
        for part in parts
    }


def _by_role(launches: Sequence[Mapping[Part, Both]], numbers: tuple[int, ...]) -> tuple[RoleTurns, ...]:
    parts = dict.fromkeys(part for one in launches for part in one)
    found = []
    for role in dict.fromkeys(role for role, _ in parts):
        layers = sorted(layer for own, layer in parts if own == role and layer is not None)
        sums = [_of_role(one, role) for one in launches]
        changes = [[one.get((role, layer), (0.0, 0.0)) for one in launches] for layer in layers]
        found.append(
            RoleTurns(
                role=role,
                before_ns=tuple(round(before) for before, _ in sums),
                after_ns=tuple(round(after) for _, after in sums),
                layers=tuple(layers),
                layer_change_ns=tuple(tuple(round(after - before) for before, after in one) for one in changes),
                launches=numbers,
            )
        )
    return tuple(found)


def _of_role(launch: Mapping[Part, Both], role: str) -> Both:
    own = [both for part, both in launch.items() if part[0] == role]
    return sum(before for before, _ in own), sum(after for _, after in own)
