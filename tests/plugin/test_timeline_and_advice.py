"""The timeline of a run, in the profile round only and kept beside the run file; and the advice on a run."""

import json
import textwrap

from pytest_infer.storage import sidecar


def stored(pytester):
    (path,) = (pytester.path / ".benchmarks").rglob("*.json")
    return path, json.loads(path.read_text())


def test_it_is_kept_in_the_sidecar_with_the_phases_marks(suite):
    pytester = suite(engine="Scripted.delays = [0.05, 0.1, 0.1]")
    pytester.runpytest("--benchmark-autosave", "--infer-rounds=2", "-k", "first").assert_outcomes(
        passed=1, deselected=1
    )
    path, run = stored(pytester)
    block = next(b["extra_info"]["pytest_infer"] for b in run["benchmarks"] if b["group"] == "total")
    kept = {key.rpartition("|")[2]: array for key, array in sidecar.read(path).items() if "[first]|timeline|" in key}
    assert set(kept) == {
        "at_ns", "rss_bytes", "core_busy_s", "read_bytes", "write_bytes", "start_ns", "first_token_ns", "end_ns"
    }  # fmt: skip
    assert kept["start_ns"] == 0
    assert 50e6 <= kept["first_token_ns"] <= kept["end_ns"] - 200e6
    # From just before the round until just after it.
    assert kept["at_ns"][0] < kept["end_ns"] < kept["at_ns"][-1]
    assert len(kept["at_ns"]) == block["timeline"]["samples"] == len(kept["rss_bytes"]) == len(kept["core_busy_s"])
    assert block["timeline"]["helper_cpu_s"] > 0
    assert block["timeline"]["not_read"] == {}


def test_timed_rounds_are_never_sampled(suite):
    test = """
    from contextlib import contextmanager
    from pytest_infer.measure.timeline.recorder import TimelineSampler

    sampled = []
    original = TimelineSampler.sampling

    @contextmanager
    def counting(self):
        sampled.append(CALLS())
        with original(self) as window:
            yield window

    TimelineSampler.sampling = counting

    def test_it(infer, prompt, engine):
        global CALLS
        CALLS = lambda: engine.calls
        before = engine.calls
        infer(prompt)
        # One warm-up and three timed rounds came before it; the profile round is the only one after it.
        assert sampled == [before + 4]
        assert engine.calls == before + 5
        TimelineSampler.sampling = original
    """
    pytester = suite(test=textwrap.dedent(test))
    pytester.runpytest("--infer-rounds=3", "-k", "first").assert_outcomes(passed=1, deselected=1)


def test_without_a_profile_round_no_helper_is_started(suite):
    test = """
    from pytest_infer.pytest_face.session import KEY

    def test_it(infer, prompt, request):
        infer(prompt)
        assert request.config.stash[KEY].observing.sampler().helper is None
    """
    suite(test=textwrap.dedent(test)).runpytest("--infer-no-profile").assert_outcomes(passed=2)


def test_advice_is_stored_shown_in_one_line_and_whole_on_demand(suite, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    pytester = suite(engine="Scripted.delays = [0.0, 0.3, 0.3]")
    args = ["--benchmark-autosave", "--infer-rounds=1", "--infer-warmup=0"]
    result = pytester.runpytest(*args)
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["next: decode * tok/s*slow_decode*: pytest-infer advice)"])
    text = result.stdout.str()
    assert text.count("\nnext: ") == 1
    assert not any(f"\n{word}: " in text for word in ("critical", "warning", "info", "good"))
    _, run = stored(pytester)
    rules = {a["rule"]: a for a in run["pytest_infer"]["advice"]}
    assert {"slow_decode", "short_first_token", "too_few_rounds"} <= set(rules)
    assert rules["slow_decode"]["prompts"] == ["first", "second"]
    whole = pytester.runpytest("--infer-advice", *args[1:])
    whole.stdout.fnmatch_lines(["good: time to first token*short_first_token)"])
