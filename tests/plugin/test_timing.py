"""Engines that inject known delays: what the clock stamps is what the engine did, to a millisecond.

The engine reads the same clock right before each tick, so that the machine's own noise (a sleep that lasts too long)
cancels. No test asserts how long a sleep took at most.
"""

import gc
import json
from itertools import pairwise

import pytest

NOTING = """
import json
from time import perf_counter_ns

Scripted.delays = {delays}
Scripted.chunks = {chunks}
NOTES = []

def generate(self, prompt_ids, limits, clock):
    started = perf_counter_ns()
    at, made = [], 0
    for number, delay in enumerate(self.delays):
        size = self.chunks[number] if self.chunks else 1
        if delay:
            time.sleep(delay)
        ids = list(range(made + 1, made + size + 1))
        made += size
        at.append(perf_counter_ns())
        clock.tick(ids)
    NOTES.append((started, at))
    return StopReason.EOS if made < limits.max_new_tokens else StopReason.LENGTH

Scripted.generate = generate

def pytest_unconfigure():
    with open("notes.json", "w") as file:
        json.dump(NOTES, file)
"""
"""Notes, for each generation, when it began and the moment just before each tick."""

PROMPT = """
[[prompt]]
name = "only"
text = "one two three"
max_new_tokens = {limit}
"""

ROUNDS = 3
MS = 0.001


class Seen:
    """What one run measured, beside what the engine noted."""

    def __init__(self, pytester):
        np = pytest.importorskip("numpy")
        (path,) = pytester.path.glob(".benchmarks/*/*.json")
        run = json.loads(path.read_text())
        self.rows = {row["params"]["phase"]: row for row in run["benchmarks"]}
        self.block = self.rows["total"]["extra_info"]["pytest_infer"]
        self.metrics = {key: metric.get("rounds") for key, metric in self.block["metrics"].items()}
        # A warm-up, the timed rounds, the profile round.
        self.notes = json.loads(pytester.path.joinpath("notes.json").read_text())[1 : 1 + ROUNDS]
        with np.load(path.with_suffix(".npz")) as arrays:
            key = "test_suite.py::test_prompt[only]|{}|stamps_ns"
            self.stamps = [[int(s) for s in arrays[key.format(number)]] for number in range(ROUNDS)]

    def best(self, metric, of_notes):
        """Return the smallest difference over the rounds between a metric and the same figure of the notes, seconds."""
        pairs = zip(self.metrics[metric], self.notes, strict=True)
        return min(abs(ours - of_notes([t / 1e9 - noted[0] / 1e9 for t in noted[1]])) for ours, noted in pairs)


@pytest.fixture
def measure(suite):
    def run(delays, *, chunks=None, limit=None):
        limit = limit or sum(chunks or [1] * len(delays))
        pytester = suite(engine=NOTING.format(delays=delays, chunks=chunks), prompts=PROMPT.format(limit=limit))
        result = pytester.runpytest("--benchmark-autosave", f"--infer-rounds={ROUNDS}")
        result.assert_outcomes(passed=1)
        return Seen(pytester)

    return run


@pytest.fixture
def guide(measure, _seen):
    """What one run of GUIDE measured, for all tests of this file that ask of it."""
    if not _seen:
        _seen.append(measure(GUIDE))
    return _seen[0]


@pytest.fixture(scope="module")
def _seen():
    return []


def gaps(ticks):
    return [b - a for a, b in pairwise(ticks)]


def linear(values, part):
    """Return a percentile, linear between order statistics, written apart from the plugin's."""
    values = sorted(values)
    rank = part * (len(values) - 1)
    low = int(rank)
    high = min(low + 1, len(values) - 1)
    return values[low] + (rank - low) * (values[high] - values[low])


GUIDE = [0.2, 0.02, 0.02, 0.12, 0.02, 0.02]


def test_every_tick_of_the_best_round_is_within_a_millisecond(guide):
    worst = []
    for (started, noted), stamps in zip(guide.notes, guide.stamps, strict=True):
        assert len(stamps) == len(noted) == len(GUIDE)
        worst.append(max(abs(ours - (its - started)) for ours, its in zip(stamps, noted, strict=True)))
    assert min(worst) <= 1_000_000, f"worst tick of each round, ns: {worst}"


def test_a_stamp_is_never_before_the_tick(measure):
    # The clock starts before the engine does, so that this holds in every round, however noisy the machine.
    seen = measure([0.01, 0.01, 0.01])
    for (started, noted), stamps in zip(seen.notes, seen.stamps, strict=True):
        assert all(ours >= its - started for ours, its in zip(stamps, noted, strict=True))


def test_delays_are_lower_bounds_of_every_round(guide):
    for number, stamps in enumerate(guide.stamps):
        assert stamps[0] >= 0.2e9
        assert all(gap >= delay * 1e9 - 1 for gap, delay in zip(gaps(stamps), GUIDE[1:], strict=True)), number
    for metric, least in {
        "ttft_s": 0.2,
        "prefill_s": 0.2,
        "total_s": 0.4,
        "decode_s": 0.2,
        "tpot_s": 0.04,
        "itl_p50_s": 0.02,
        "itl_p99_s": 0.116,  # 20 + 0.96 × 100 ms: rank 0.99 × 4 = 3.96
        "itl_max_s": 0.12,
    }.items():
        assert all(value >= least for value in guide.metrics[metric]), metric


@pytest.mark.parametrize(
    ("metric", "figure"),
    [
        ("ttft_s", lambda ticks: ticks[0]),
        ("prefill_s", lambda ticks: ticks[0]),
        ("total_s", lambda ticks: ticks[-1]),
        ("decode_s", lambda ticks: ticks[-1] - ticks[0]),
        ("tpot_s", lambda ticks: (ticks[-1] - ticks[0]) / (len(ticks) - 1)),
        ("itl_p50_s", lambda ticks: linear(gaps(ticks), 0.5)),
        ("itl_p90_s", lambda ticks: linear(gaps(ticks), 0.9)),
        ("itl_p95_s", lambda ticks: linear(gaps(ticks), 0.95)),
        ("itl_p99_s", lambda ticks: linear(gaps(ticks), 0.99)),
        ("itl_max_s", lambda ticks: max(gaps(ticks))),
    ],
)
def test_each_figure_is_within_a_millisecond_of_the_engines_own(guide, metric, figure):
    assert guide.best(metric, figure) <= MS


def test_each_figure_follows_from_the_stamps_that_were_kept(guide):
    np = pytest.importorskip("numpy")
    for number, stamps in enumerate(guide.stamps):
        steps = np.diff(stamps) / 1e9
        expected = {
            "ttft_s": stamps[0] / 1e9,
            "total_s": stamps[-1] / 1e9,
            "decode_s": (stamps[-1] - stamps[0]) / 1e9,
            "tpot_s": steps.mean(),
            "itl_max_s": steps.max(),
            **{f"itl_p{part}_s": np.percentile(steps, part) for part in (50, 90, 95, 99)},
        }
        found = {key: guide.metrics[key][number] for key in expected}
        assert found == pytest.approx(expected, abs=2e-9)


def test_rates_follow_from_the_times(guide):
    metrics = guide.metrics
    for number in range(ROUNDS):
        assert metrics["decode_throughput"][number] == pytest.approx(1 / metrics["tpot_s"][number])
        assert metrics["overall_throughput"][number] == pytest.approx((3 + 6) / metrics["total_s"][number])
        assert metrics["prefill_throughput"][number] == pytest.approx(3 / metrics["ttft_s"][number])


def test_the_native_rows_hold_the_same_durations(measure):
    seen = measure([0.02, 0.01, 0.01])
    for phase in ("total", "ttft", "tpot"):
        assert seen.rows[phase]["stats"]["min"] == min(seen.metrics[f"{phase}_s"])
        assert seen.rows[phase]["stats"]["max"] == max(seen.metrics[f"{phase}_s"])


def test_the_slow_step_is_found_in_its_place(guide):
    for stamps in guide.stamps:
        assert gaps(stamps)[2] >= 0.12e9 - 1


def test_ticks_of_several_tokens(measure):
    seen = measure([0.05, 0.03, 0.06], chunks=[2, 3, 1])
    assert seen.block["metrics"]["generated_tokens"]["value"] == 6
    assert all(len(stamps) == 3 for stamps in seen.stamps)
    # Two gaps for four tokens after the first tick.
    assert seen.best("tpot_s", lambda ticks: (ticks[-1] - ticks[0]) / 4) <= MS
    assert seen.best("itl_max_s", lambda ticks: max(gaps(ticks))) <= MS
    assert all(value >= 0.09 / 4 for value in seen.metrics["tpot_s"])
    assert all(value <= 4 / 0.09 for value in seen.metrics["decode_throughput"])


def test_all_tokens_in_one_tick(measure):
    seen = measure([0.03], chunks=[5])
    assert seen.block["metrics"]["generated_tokens"]["value"] == 5
    assert set(seen.rows) == {"total", "ttft"}
    for key in ("tpot_s", "decode_s", "decode_throughput", "itl_p50_s", "itl_max_s"):
        assert "no second tick" in seen.block["absent"][key]


def test_one_token_only(measure):
    seen = measure([0.03])
    assert seen.metrics["ttft_s"] == seen.metrics["total_s"]
    assert all(value >= 0.03 for value in seen.metrics["ttft_s"])
    assert seen.best("ttft_s", lambda ticks: ticks[0]) <= MS
    assert set(seen.rows) == {"total", "ttft"}
    assert "decode_s" in seen.block["absent"]
    assert seen.block["output"]["stopped_by"] == "length"


def test_eos_at_once(measure):
    seen = measure([0.02], limit=60)
    assert seen.block["metrics"]["generated_tokens"]["value"] == 1
    assert seen.block["metrics"]["requested_tokens"]["value"] == 60
    assert seen.block["output"]["stopped_by"] == "eos"
    assert set(seen.rows) == {"total", "ttft"}


def test_prefill_that_an_engine_tells_apart(suite):
    pytester = suite(
        engine="""
        def generate(self, prompt_ids, limits, clock):
            time.sleep(0.03)
            clock.prefilled()
            time.sleep(0.02)
            clock.tick([1])
            time.sleep(0.01)
            clock.tick([2])

        Scripted.generate = generate
        """,
        test="""
        from pytest_infer.metrics import timing

        def test_prompt(infer, prompt):
            for r in infer(prompt).rounds:
                assert 0.03 <= timing.prefill_s(r.trace) <= timing.ttft_s(r.trace) - 0.02
                assert timing.prefill_throughput(r.trace) <= r.trace.prompt_tokens / 0.03
        """,
    )
    pytester.runpytest(f"--infer-rounds={ROUNDS}").assert_outcomes(passed=2)


def test_what_is_not_the_engines_work_is_not_timed(suite):
    # Encoding, resetting, preparing, synchronising, decoding, counting the cache take 50 ms each; a round none of it.
    pytester = suite(
        engine="""
        for name in ("encode", "reset", "prepare", "synchronize", "decode", "cache_bytes"):
            def slow(self, *args, method=getattr(Scripted, name)):
                time.sleep(0.05)
                return method(self, *args)
            setattr(Scripted, name, slow)
        """,
        test="""
        from pytest_infer.metrics import timing

        def test_prompt(infer, prompt):
            record = infer(prompt)
            assert min(timing.total_s(r.trace) for r in record.rounds) < 0.05
            assert record.tokenize_s >= 0.05
        """,
    )
    pytester.runpytest(f"--infer-rounds={ROUNDS}").assert_outcomes(passed=2)


def test_nothing_collects_garbage_inside_a_round(suite):
    pytester = suite(
        engine="""
        import gc
        SEEN, COLLECTIONS = [], []
        generate = Scripted.generate
        gc.callbacks.append(lambda phase, info: COLLECTIONS.append(phase))

        def watched(self, prompt_ids, limits, clock):
            COLLECTIONS.clear()
            aside = gc.get_freeze_count() > 5 * len(gc.get_objects())
            try:
                # Enough to start many collections, where they are not switched off.
                self.garbage = [[[]] for _ in range(10_000)]
                return generate(self, prompt_ids, limits, clock)
            finally:
                SEEN.append((gc.isenabled(), aside, *COLLECTIONS))

        Scripted.generate = watched

        def pytest_unconfigure(config):
            gc.callbacks.pop()
            aside = gc.get_freeze_count() > 5 * len(gc.get_objects())
            config.rootpath.joinpath("aside").write_text(str(aside))
        """,
        test="""
        import gc
        import conftest

        def test_prompt(infer, prompt):
            infer(prompt)
            assert set(conftest.SEEN) == {(False, True)}
            assert gc.isenabled()
        """,
    )
    # In this process, where much is alive that can be set aside, and by the run itself.
    type(pytester).runpytest_inprocess(pytester).assert_outcomes(passed=2)
    # Neither does pytest walk through all that while it ends.
    assert pytester.path.joinpath("aside").read_text() == "True"
    assert gc.get_freeze_count() == 0


def test_what_a_module_held_is_gone_in_the_next(suite):
    held = """
        import weakref

        import pytest

        class Cycle:
            def __init__(self): self.itself = self

        @pytest.fixture(scope="module")
        def held(request):
            made = Cycle()
            request.config.alive = weakref.ref(made)
            return made

        @pytest.mark.parametrize("number", range(3))
        def test_it(infer, number, held): infer("one two")
    """
    pytester = suite(prompts=None, test="def test_it(): pass\n")
    later = """
        def test_it(infer, request):
            infer("one two")
            assert request.config.alive() is None
    """
    pytester.makepyfile(test_a=held, test_b=later)
    # In this process and with its own freezing, which sets `held` aside until the module is over.
    type(pytester).runpytest_inprocess(pytester, "test_a.py", "test_b.py").assert_outcomes(passed=4)
