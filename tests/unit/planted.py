"""Suites of prompts with a slowness planted in one phase, of all prompts or of one, in each way of comparing."""

import dataclasses
import math
from pathlib import Path

import numpy as np

from pytest_infer.analysis.compare.comparison import RowPair
from pytest_infer.analysis.compare.launches import FIRST, STEP
from pytest_infer.records import Turns

NAMES = ("story", "chat", "code", "guide", "list", "poem", "quiz", "recipe", "talk")
LAUNCHES = 8
KEPT = ("prompt_tokens", "output_sha256")


class Suites:
    """Makes pairs of rows; `prefill` and `decode` are the ratios planted in the prompts `of`."""

    def __init__(self, make_row, seed=3):
        self._make_row = make_row
        self._rng = np.random.default_rng(seed)

    def noise(self, spread, many):
        return self._rng.normal(0, spread, many)

    def row(self, name, prefill=1.0, decode=1.0, *, rounds=14, spread=0.002, peak=3e8, **changes):
        def around(middle, wobble=spread):
            return [float(middle * math.exp(x)) for x in self.noise(wobble, rounds)]

        return self._make_row(
            name,
            only=KEPT,
            ttft_s=around(0.2 * prefill),
            tpot_s=around(0.05 * decode),
            total_s=around(0.2 * prefill + 0.5 * decode),
            decode_throughput=around(20 / decode),
            peak_rss_bytes=around(peak, 0.0001),
            **changes,
        )

    def sides(self, name, *, prefill, decode, of, spread=0.002):
        here = name in of
        before = self.row(name, spread=spread)
        return before, self.row(name, prefill if here else 1.0, decode if here else 1.0, spread=spread)

    def turns(self, *, prefill=1.0, decode=1.0, of=NAMES, names=NAMES, launch=0.004, within=0.002):
        """Pairs whose sides took turns of a token, in launches that shift all of their prompts alike."""
        shifts = {FIRST: self.noise(launch, LAUNCHES), STEP: self.noise(launch, LAUNCHES)}
        pairs = []
        for name in names:
            planted = {FIRST: math.log(prefill if name in of else 1), STEP: math.log(decode if name in of else 1)}
            ratios = {part: tuple(self._passes(planted[part] + x, within) for x in shifts[part]) for part in shifts}
            before, after = self.sides(name, prefill=prefill, decode=decode, of=of)
            told = Turns(every=1, cycles=4, seconds=9.0, ratios=ratios)
            pairs.append(RowPair(before=before, after=after, paired=True, turns=told))
        return pairs

    def _passes(self, middle, within):
        """Four passes that scatter alike in every launch: none is restless."""
        own = middle + self.noise(within / 2, 1)[0]
        return tuple(float(own + within * place) for place in (-1.2, 0.4, -0.4, 1.2))

    def rounds(self, *, prefill=1.0, decode=1.0, of=NAMES, names=NAMES, spread=0.002):
        """Pairs of whole rounds."""
        return [
            RowPair(before=a, after=b, paired=True)
            for a, b in (self.sides(name, prefill=prefill, decode=decode, of=of, spread=spread) for name in names)
        ]

    def stored(self, *, prefill=1.0, decode=1.0, of=NAMES, names=NAMES, runs=8, apart=0.002):
        """Pairs of stored runs; earlier ones shift all of their prompts alike."""
        shifts = [math.exp(x) for x in self.noise(apart, runs)]
        pairs = []
        for name in names:
            earlier = tuple(
                dataclasses.replace(self.row(name, shift, shift), run=Path(f"{number:04}.json"))
                for number, shift in enumerate(shifts)
            )
            after = self.sides(name, prefill=prefill, decode=decode, of=of)[1]
            pairs.append(RowPair(before=earlier[-1], after=after, history=earlier))
        return pairs
