"""How often a sweep's intervals hold the truth on a machine that drifts: the simulation behind docs/sweeps.md.

    python benchmarks/drift_intervals.py --runs 1500

Equal configurations, two a load, on a machine whose speed is an Ornstein-Uhlenbeck process (5 %) that forgets within
`memory` tests, with 3 % of noise from round to round. No model is run.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random

from pytest_infer.analysis.sweep.ratios import mean_log, ratio_of

DRIFT, NOISE, ROUNDS = 0.05, 0.03, 5

Samples = dict[tuple[str, ...], tuple[float, ...]]


def sweep(rng: random.Random, loads: int, prompts: int, memory: float) -> tuple[list[Samples], list[float]]:
    """Return each load's samples, and what its first test had become when measured again after the last."""
    kept, level = math.exp(-1 / memory), rng.gauss(0, DRIFT)
    samples: list[Samples] = []
    told: list[float] = []

    def rounds() -> tuple[float, ...]:
        nonlocal level
        level = kept * level + rng.gauss(0, DRIFT * math.sqrt(1 - kept**2))
        return tuple(math.exp(level + rng.gauss(0, NOISE)) for _ in range(ROUNDS))

    for _ in range(loads):
        own: Samples = {}
        for prompt in range(prompts):
            own[(str(prompt),)] = rounds()
            rounds()  # the load's other configuration
        samples.append(own)
        told.append(math.exp(mean_log(rounds()) - mean_log(own[("0",)])))
    return samples, told


def holds(before: Samples, after: Samples, drift: list[float]) -> bool:
    """Return whether the interval holds 1, which is the truth."""
    ratio = ratio_of(before, after, drift)
    return ratio is not None and ratio.low is not None and ratio.high is not None and ratio.low <= 1 <= ratio.high


def main() -> None:
    """Print how often each kind of interval holds the truth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1500)
    runs = parser.parse_args().runs
    rng = random.Random(1)  # noqa: S311 - a simulation
    print("loads prompts memory  neighbours  without drift  first and last")
    for loads, prompts, memory in itertools.product((2, 4), (1, 5), (1, 5, 20, 100)):
        held = [0, 0, 0]
        for _ in range(runs):
            samples, told = sweep(rng, loads, prompts, memory)
            held[0] += holds(samples[0], samples[1], told)
            held[1] += holds(samples[0], samples[1], [])
            held[2] += holds(samples[0], samples[-1], told)
        neighbours, without, ends = (f"{100 * n / runs:.1f} %" for n in held)
        print(f"{loads:5} {prompts:7} {memory:6} {neighbours:>11} {without:>14} {ends:>15}")


if __name__ == "__main__":
    main()
