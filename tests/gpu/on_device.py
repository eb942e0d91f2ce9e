"""Work of a known duration on a device, engines that do it, and what a generation gives."""

import time

from pytest_infer.engines.base import Engine
from pytest_infer.measure.clock import TokenClock
from pytest_infer.records import Limits

IDS = [5, 9, 14, 30, 77, 12, 201, 8, 41, 41, 90]
LIMITS = Limits(max_new_tokens=24, ignore_eos=True)


class Spinner:
    """Lets a device spin: a card by a kernel that counts cycles of its clock, a CPU by looking at the time.

    What each took is measured by the card's own events, in `took`: its clock rises and falls with its temperature.
    """

    def __init__(self, device):
        import torch

        self.device = device
        self._torch = torch
        self._events = []
        self._took = []
        if device.type == "cuda":
            self.cycles_per_s = 1e9
            for _ in range(4):  # it starts from an idle clock
                self(0.2)
                (took,) = self.took()
                self.cycles_per_s *= 0.2 / took

    def __call__(self, seconds):
        """Start it, and on a card do not wait."""
        if self.device.type != "cuda":
            begun = time.perf_counter()
            while time.perf_counter() - begun < seconds:
                pass
            self._took.append(time.perf_counter() - begun)
            return
        begun, ended = (self._torch.cuda.Event(enable_timing=True) for _ in range(2))
        with self._torch.cuda.device(self.device):
            begun.record()
            self._torch.cuda._sleep(int(seconds * self.cycles_per_s))
            ended.record()
        self._events.append((begun, ended))

    def took(self):
        """Wait, return the seconds that each took since this was last asked, and forget them."""
        self.wait()
        found = self._took + [begun.elapsed_time(ended) / 1e3 for begun, ended in self._events]
        self._events, self._took = [], []
        return found

    def wait(self):
        if self.device.type == "cuda":
            self._torch.cuda.synchronize(self.device)


class Own(Engine):
    """An engine of one's own that does `work(step)` before each tick, and waits for the device."""

    def __init__(self, spinner, work):
        self.spinner, self.work = spinner, work

    def load(self):
        raise NotImplementedError

    def encode(self, prompt):
        raise NotImplementedError

    def decode(self, token_ids):
        raise NotImplementedError

    def synchronize(self):
        self.spinner.wait()

    def generate(self, prompt_ids, limits, clock):
        for step in range(limits.max_new_tokens):
            self.work(step)
            self.spinner.wait()
            clock.tick([step])


def generated(engine, ids=IDS, limits=LIMITS, *, scores=False):
    """Return the trace of a generation, and the scores of what it generated if they are kept."""
    clock = TokenClock()
    engine.keep_scores(keep=scores)
    engine.reset()
    engine.prepare(ids, limits)
    engine.synchronize()
    clock.start()
    engine.generate(ids, limits, clock)
    trace = clock.trace(prompt_tokens=len(ids), requested_tokens=limits.max_new_tokens, stopped_by=None)
    found = engine.scores() if scores else None
    engine.keep_scores(keep=False)
    return trace, found


def usage_of(engine, *, follow=None, sequences=1):
    """Return the expert usage of a generation, which follows these tokens if any are given."""
    from pytest_infer.measure.experts.recorder import ExpertRecorder

    limits = Limits(max_new_tokens=LIMITS.max_new_tokens, ignore_eos=True, batch=sequences)
    recorder = ExpertRecorder(engine.experts_module())
    engine.follow(follow)
    try:
        with recorder.recording(prompt_tokens=len(IDS), trace=sequences == 1):
            trace, _ = generated(engine, limits=limits)
    finally:
        engine.follow(None)
    tokens = sequences * len(trace.token_ids)
    return trace, recorder.usage(prompt_tokens=sequences * len(IDS), generated_tokens=tokens, sequences=sequences)
