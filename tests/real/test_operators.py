"""Operators of real models in torch's profiler: a bounded trace, roles, memory, and nothing that stays behind."""

import dataclasses
import gzip
import json
import re
import threading
from types import SimpleNamespace

import pytest
from lazily import torch
from shell import Shell

from asked import asked
from pytest_infer.engines.base import Engine
from pytest_infer.measure import rounds
from pytest_infer.measure.breakdown import operators, taken, traced
from pytest_infer.measure.clock import TokenClock
from pytest_infer.measure.counters.snapshot import SystemCounters
from pytest_infer.records import Limits, ModelInfo, Role, StopReason
from pytest_infer.storage import runs

pytestmark = pytest.mark.real
IDS = [5, 9, 14, 30, 77, 12, 201, 8, 41, 41, 90]
LIMITS = Limits(max_new_tokens=14, ignore_eos=True)


def opened(found):
    return json.loads(gzip.decompress(found.trace))["traceEvents"]


def named(events, cat):
    return [event["name"] for event in events if event.get("cat") == cat]


@pytest.mark.parametrize("kind", ["llama", "mixtral", "olmoe"])
def test_prefill_and_a_few_steps_are_recorded(kind, engine_of):
    engine = engine_of(kind)
    ranges = []
    for limit, steps in ((200, 4), (14, 4), (3, 2)):
        found = operators.take(engine, asked(IDS), dataclasses.replace(LIMITS, max_new_tokens=limit))
        events = opened(found)
        assert named(events, "step") == ["prefill", *(f"decode step {n + 1}" for n in range(steps))]
        assert (found.prefill.steps, found.decode.steps) == (1, steps)
        assert (found.absent, found.peaks_absent, found.trace_absent) == (None, None, None)
        ranges.append(named(events, "user_annotation"))
    of_layers = "dense MLP" if kind == "llama" else "experts"
    # A range a layer and step, however long the generation is.
    assert [one.count(f"{of_layers}, layer 2") for one in ranges] == [5, 5, 3]
    assert [one.count("head") for one in ranges] == [5, 5, 3]
    assert {"KV cache", "sampling", "norms, layer 0", "attention scores, layer 1"} <= set(ranges[0])


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_slices_of_a_thread_nest(kind, engine_of):
    """Perfetto drops a slice that ends after the one in which it began."""
    slices = [event for event in opened(operators.take(engine_of(kind), asked(IDS), LIMITS)) if event["ph"] == "X"]
    around: dict[tuple[object, object], list[float]] = {}
    for event in sorted(slices, key=lambda event: (event["ts"], -event["dur"])):
        ends = around.setdefault((event["pid"], event["tid"]), [])
        while ends and ends[-1] <= event["ts"]:
            ends.pop()
        end = event["ts"] + event["dur"]
        assert not ends or end <= ends[-1] + 1e-6, event
        ends.append(end)


def test_operators_have_the_role_and_the_shapes_they_ran_in(engine_of, monkeypatch):
    monkeypatch.setattr(traced, "MOST_ROWS", 1000)
    engine = engine_of("llama")
    config = engine.running.model.config
    found = operators.take(engine, asked(IDS), LIMITS)
    hidden, vocabulary = config.hidden_size, config.vocab_size
    for phase in (found.prefill, found.decode):
        (head,) = [row for row in phase.operators if row.role == Role.HEAD and row.name == "aten::mm"]
        assert (head.shapes, head.calls) == (f"[1, {hidden}], [{hidden}, {vocabulary}]", 1)
        assert head.self_s > 0
        assert head.device_s is None
        assert sum(row.self_s for row in phase.operators) <= phase.self_s * 1.000001
    by_role = {row.role for row in found.decode.operators}
    assert {Role.DENSE, Role.PROJECTIONS, Role.SCORES} <= by_role
    # A text that grows is one row.
    (cat,) = [row for row in found.decode.operators if row.name == "aten::cat" and row.role == Role.CACHE]
    assert f"{len(IDS)}-{len(IDS) + 3}" in cat.shapes
    assert cat.calls == 2 * config.num_hidden_layers


def test_memory_is_what_the_allocator_gave(engine_of):
    engine = engine_of("llama")
    model = engine.running.model
    size = model.dtype.itemsize
    mlp = model.model.layers[1].mlp
    own = mlp.forward

    def greedy(hidden):
        extra = [torch.zeros(1000, dtype=torch.uint8) for _ in range(50)]
        del extra
        return own(hidden)

    plain = operators.take(engine, asked(IDS), LIMITS)
    mlp.forward = greedy
    more = operators.take(engine, asked(IDS), LIMITS)
    for before, after, tokens in ((plain.prefill, more.prefill, len(IDS)), (plain.decode, more.decode, 1)):
        # Of 50 that were there at one time nothing is left when the layer's own tensors come.
        assert after.peaks[Role.DENSE] == max(before.peaks[Role.DENSE], 50_000)
        assert {r: n for r, n in after.peaks.items() if r != Role.DENSE} == {
            r: n for r, n in before.peaks.items() if r != Role.DENSE
        }
        # Logits of the last position.
        assert after.peaks[Role.HEAD] >= model.config.vocab_size * size
        assert after.peak_bytes >= max(after.peaks.values())
        assert before.peaks[Role.DENSE] >= tokens * model.config.intermediate_size * size
    cache = 2 * model.config.num_hidden_layers * model.config.num_key_value_heads
    a_token = cache * (model.config.hidden_size // model.config.num_attention_heads) * size
    assert plain.prefill.peaks[Role.CACHE] >= len(IDS) * a_token
    assert plain.decode.peaks[Role.CACHE] >= (len(IDS) + 4) * a_token


def test_nothing_stays_behind_and_the_output_is_the_same(engine_of):
    engine = engine_of("mixtral")
    system = SystemCounters()
    runner = rounds.Runner(engine=engine, asking=asked(IDS), limits=LIMITS, system=system, usable_cores=1.0)
    seen = []
    own = engine.generate

    def generate(prompt_ids, limits, clock):
        # Whether a profiler is there, as torch itself knows it.
        seen.append((type(clock).__name__, torch.autograd._profiler_enabled()))
        stopped = own(prompt_ids, limits, clock)
        seen[-1] += (tuple(int(i) for ids in clock._ids for i in ids),)
        return stopped

    engine.generate = generate
    plan = rounds.RoundPlan(warmup=1, rounds=3, profile=True, experts=True, breakdown=taken.OPS)
    found = rounds.measure(runner, plan, lambda *_: None)
    runner.timed()
    system.close()
    assert found.breakdown.decode is not None
    assert found.breakdown.operators.decode.steps == 4
    profiled = [one for one in seen if one[1]]
    assert [one[0] for one in profiled] == ["RangeClock"]
    assert seen[-2] == profiled[0]
    assert seen[-1][:2] == (TokenClock.__name__, False)
    assert profiled[0][2] == seen[0][2][:5]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in engine.running.model.modules())


@pytest.mark.parametrize("mode", [taken.ON, taken.AUTO])
def test_without_ops_there_is_no_profiler(mode, engine_of):
    engine = engine_of("llama")
    system = SystemCounters()
    runner = rounds.Runner(engine=engine, asking=asked(IDS), limits=LIMITS, system=system, usable_cores=1.0)
    found, why = runner.taken_apart(runner.timed().trace, mode)
    system.close()
    assert (found.operators, why) == (None, None)


def test_a_recording_that_fails_loses_nothing_else(engine_of):
    engine = engine_of("llama")
    system = SystemCounters()
    runner = rounds.Runner(engine=engine, asking=asked(IDS), limits=LIMITS, system=system, usable_cores=1.0)
    like = runner.timed().trace
    system.close()
    own = engine.generate

    def generate(prompt_ids, limits, clock):
        stopped = own(prompt_ids, limits, clock)
        if torch.autograd._profiler_enabled() or isinstance(clock, operators.RangeClock):
            raise RuntimeError("too much\nis asked")
        return stopped

    engine.generate = generate
    found, why = runner.taken_apart(like, taken.OPS)
    assert why is None
    assert found.decode is not None
    assert found.operators.absent == "recording operators failed: RuntimeError: too much is asked"
    assert not torch.autograd._profiler_enabled()
    assert not any(module._forward_hooks for module in engine.running.model.modules())


class Own(Engine):
    """A loop of one's own with spans and no modules, which ticks two tokens at once and ends when it likes."""

    def __init__(self, *, steps=3, work=True, elsewhere=False):
        self.steps, self.work, self.elsewhere = steps, work, elsewhere
        self.weights = torch.ones(64, 64)

    def load(self):
        return ModelInfo(name="own", engine="mine")

    def encode(self, prompt):
        return [1, 2]

    def decode(self, token_ids):
        return ""

    def generate(self, prompt_ids, limits, clock):
        for _ in range(self.steps):
            with clock.span("blocks", 3), clock.span("inner"):
                if self.elsewhere:
                    thread = threading.Thread(target=self._multiply)
                    thread.start()
                    thread.join()
                elif self.work:
                    self._multiply()
            clock.tick([4, 5])
        return StopReason.LENGTH

    def _multiply(self):
        self.weights @ self.weights


def test_an_engines_own_spans_are_ranges():
    found = operators.take(Own(), asked([1, 2]), LIMITS)
    assert {"blocks, layer 3", "inner"} <= set(named(opened(found), "user_annotation"))
    assert {row.role for row in found.decode.operators} == {"inner"}
    assert found.decode.steps == 2
    assert found.decode.peaks == {"inner": 64 * 64 * 4}


def test_an_engine_that_goes_on_is_recorded_no_longer():
    found = operators.take(Own(steps=40), asked([1, 2]), LIMITS)
    assert found.decode.steps == operators.MOST_STEPS
    assert named(opened(found), "cpu_op").count("aten::mm") == 1 + operators.MOST_STEPS


# prompts that are long


@pytest.fixture
def few_operators(monkeypatch):
    """A limit that a prefill of the tiny models exceeds, and that of a short prompt is not asked about."""
    monkeypatch.setattr(operators, "MOST_OPERATORS", 50)
    monkeypatch.setattr(operators, "SHORT", len(IDS))


@pytest.mark.usefixtures("few_operators")
def test_a_prefill_of_too_many_operators_is_left_out(engine_of):
    engine = engine_of("mixtral")
    ids = [*IDS, 7]
    found = operators.take(engine, asked(ids), LIMITS)
    assert found.prefill is None
    why = r"it runs \d{3,} operators, and at most 50 are recorded"
    assert re.fullmatch(why, found.prefill_absent)
    # The same steps as ever.
    assert named(opened(found), "step") == [f"decode step {n + 1}" for n in range(4)]
    assert {"experts", "head", "KV cache"} <= {row.role for row in found.decode.operators} | set(found.decode.peaks)
    assert found.peaks_absent is None
    only = operators.take(engine, asked(ids), dataclasses.replace(LIMITS, max_new_tokens=1))
    assert re.fullmatch(f"there is only a prefill: {why}", only.absent)
    # A short prompt has few, whatever the model does.
    assert operators.take(engine, asked(IDS), LIMITS).prefill is not None


def test_a_long_prompt_of_few_operators_is_recorded(engine_of, monkeypatch):
    monkeypatch.setattr(operators, "SHORT", 4)
    engine = engine_of("mixtral")
    made = []
    own = engine.generate
    monkeypatch.setattr(engine, "generate", lambda ids, limits, clock: made.append(limits) or own(ids, limits, clock))
    found = operators.take(engine, asked(IDS), LIMITS)
    assert (found.prefill.steps, found.decode.steps, found.prefill_absent) == (1, 4, None)
    assert [one.max_new_tokens for one in made] == [1, 5]


@pytest.mark.parametrize("how", [{"work": False}, {"elsewhere": True}], ids=["none", "in another thread"])
def test_an_engine_that_runs_no_operator_here_has_the_reason(how):
    found = operators.take(Own(**how), asked([1, 2]), LIMITS)
    assert found == operators.Operators(absent="no operator of torch ran in this thread")


def test_without_torch_it_is_not_even_asked_for(monkeypatch):
    monkeypatch.setattr(operators, "sys", SimpleNamespace(modules={}))
    assert operators.take(Own(), asked([1, 2]), LIMITS).absent == "the engine runs without torch"


def test_the_trace_lies_beside_the_run_and_show_names_it(tmp_path, warm_torch):
    shell = Shell(warm_torch, tmp_path, options="--infer-no-probe --infer-rounds=2 --infer-ignore-eos")
    (tmp_path / "test_it.py").write_text("def test_prompt(infer, prompt):\n    infer(prompt)\n")
    (tmp_path / "prompts.toml").write_text('[[prompt]]\nname = "a/b c"\ntext = "hello"\nmax_new_tokens = 9\n')
    done = shell.run("pytest test_it.py --infer-breakdown=ops --benchmark-autosave", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.glob(".benchmarks/*/*.trace.json.gz")
    (run,) = tmp_path.glob(".benchmarks/*/*.json")
    assert path.name.startswith(f"{run.stem}.test_prompt-a-b-c-")
    assert f"  {path.name}" in done.stdout
    assert "operators of 4 decode steps, profiled: " in done.stdout
    assert len(json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]) > 100
    shown = shell.run("pytest-infer show -v", tmp_path).stdout
    assert path.name in shown
    assert "a/b c: operators, decode, mean of 4 steps" in shown
    assert "together, at one moment" in shown
    (found,) = json.loads(shell.run("pytest-infer show --format json", tmp_path).stdout)["tests"]
    assert found["operators"]["trace"] == path.name
    held = sum(one["parameter_bytes"] or 0 for one in found["memory"])
    (row,) = runs.rows(run)
    assert held == row.model.parameter_bytes
    # Nothing is kept of a run that is not saved.
    done = shell.run("pytest test_it.py --infer-breakdown=ops", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "traces beside the run" not in done.stdout
    assert list(tmp_path.glob("**/*.trace.json.gz")) == [path]
