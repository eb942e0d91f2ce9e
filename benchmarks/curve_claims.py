"""How often a curve of equal code on both sides is said to have changed: the simulation behind docs/sweeps.md.

    python benchmarks/curve_claims.py --runs 2500

Eight lengths in eight launches, of which each shifts all lengths alike, with four observations a launch; or in 20 pairs
of rounds. No model is run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pytest_infer.analysis.sweep import sides
from pytest_infer.records import CurvePoint, Turns
from pytest_infer.storage.runs import Row
from pytest_infer.storage.schema import StoredAgainst, Values

LENGTHS = (16, 32, 64, 128, 256, 512, 1024, 2048)
LAUNCHES, OBSERVATIONS, PAIRS = 8, 4, 20
TIMES: dict[str, Callable[[int], float]] = {
    "ttft_s": lambda n: 2e-3 + 5e-5 * n + 2e-8 * n * n,
    "tpot_s": lambda n: 2e-3 + 3e-7 * n,
}


@dataclass(frozen=True)
class Machine:
    """How far launches lie apart, and the noise of an observation (or a round) at a length, both log-ratios."""

    offset: float
    noise: Callable[[int], float]
    turns: bool = True


MACHINES = {
    "launches, all lengths alike": Machine(0.004, lambda _: 0.01),
    "launches, one length scatters 20 times as much": Machine(0.0, lambda n: 0.1 if n == LENGTHS[0] else 0.005),
    "launches, nothing but their offsets": Machine(0.01, lambda _: 0.001),
    "20 pairs of rounds": Machine(0.0, lambda _: 0.05, turns=False),
}


def curve(rng: np.random.Generator, machine: Machine) -> list[Row]:
    """Return the rows of one curve, measured on two sides of the same code."""
    offsets = rng.normal(0, machine.offset, (2, LAUNCHES))
    return [_row(rng, machine, n, offsets) for n in LENGTHS]


def _row(rng: np.random.Generator, machine: Machine, n: int, offsets: np.ndarray) -> Row:
    count, noise = (LAUNCHES, 0.03) if machine.turns else (PAIRS, machine.noise(n))
    before, after = (
        {key: _values(time(n) * np.exp(rng.normal(0, noise, count))) for key, time in TIMES.items()} for _ in range(2)
    )
    before["generated_tokens"] = after["generated_tokens"] = Values(value=16)
    ratios = {
        name: tuple(tuple(map(float, offset + rng.normal(0, machine.noise(n), OBSERVATIONS))) for offset in own)
        for name, own in zip(("first", "step"), offsets, strict=True)
    }
    turns = Turns(every=1, cycles=1, seconds=1.0, ratios=ratios) if machine.turns else None
    return Row(
        test=f"t.py::test[p-prompt-tokens={n}]",
        name="p",
        metrics=after,
        config={"prompt-tokens": str(n)},
        curve=CurvePoint(axis="prompt_tokens", value=n),
        against=StoredAgainst(rev="main", turns=turns, metrics=before, differ=()),
    )


def _values(rounds: np.ndarray) -> Values:
    return Values(value=float(np.median(rounds)), rounds=tuple(map(float, rounds)))


def main() -> None:
    """Print how often any line says that something changed, and how often a coefficient's interval holds none."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2500)
    runs = parser.parse_args().runs
    for name, machine in MACHINES.items():
        rng = np.random.default_rng(7)
        claims, held = 0, []
        for _ in range(runs):
            found = sides.of(curve(rng, machine))
            figures = [figure for one in found.curves for figure in one.figures] if found is not None else []
            claims += any(figure.finding.claims for figure in figures)
            changes = [part.change for figure in figures for part in figure.coefficients if part.change is not None]
            held += [change.low <= 0 <= change.high for change in changes]
        print(f"{name:48} any claim {100 * claims / runs:.2f} %  coefficients held {100 * np.mean(held):.1f} %")


if __name__ == "__main__":
    main()
