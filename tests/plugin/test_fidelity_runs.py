"""What runs say that followed a reference: verdicts of an A/B run, of a stored one, and a sweep's table."""

import re

import pytest
from test_following_runs import AFTER, KL, TEST, commits, suite_of, swept  # noqa: F401 - fixtures

from pytest_infer.analysis.compare.verdicts import Verdict

ROUNDS = ("--infer-turns=round", "--infer-min-pairs=3", "--infer-max-rounds=3")


def gated(run):
    return {(j.test, j.rule): j for j in run.gate.result.judgements}


def test_a_commit_that_generates_other_text_gets_verdicts_on_its_times(commits):  # noqa: F811
    result, run = commits().kept(
        "--infer-against=HEAD", *ROUNDS, "--infer-gate=ttft:5000%", "--infer-gate=output:close", "--infer-gate=kl<=0.2"
    )
    found = gated(run)
    assert found[TEST, "ttft:5000%"].verdict is not Verdict.INCOMPARABLE
    assert found[TEST, "output:close"].verdict is Verdict.REGRESSED
    assert found[TEST, "kl<=0.2"].verdict is Verdict.UNCHANGED
    assert found[TEST, "kl<=0.2"].after == pytest.approx(KL, abs=1e-6)
    said = " ".join(result.stdout.str().split())
    assert re.search(
        r"output differs from token 1 \(' 0' 0\.50 → ' 1' 0\.50\): KL 0\.173, top-1 0 %: more than arithmetic", said
    )


def test_the_same_code_is_no_distance_from_itself(commits):  # noqa: F811
    result, _ = commits().kept("--infer-against=self", *ROUNDS)
    said = " ".join(result.stdout.str().split())
    assert "output as that of the other side in all prompts, the furthest with KL 0, top-1 100 %: arithmetic" in said


def test_an_engine_that_cannot_follow_stays_incomparable(commits):  # noqa: F811
    _, run = commits(able=False).kept("--infer-against=HEAD", *ROUNDS, "--infer-gate=ttft:50%", "--infer-gate=kl<=1")
    found = gated(run)
    assert found[TEST, "ttft:50%"].verdict is Verdict.INCOMPARABLE
    assert found[TEST, "kl<=1"].verdict is Verdict.INCOMPARABLE
    assert found[TEST, "kl<=1"].reason != "not measured"


def test_a_run_that_replays_its_baseline_is_judged_by_its_distance(suite_of):  # noqa: F811
    suite_of.run("--benchmark-autosave")
    suite_of.script(first=1, p=AFTER)
    result = suite_of.run(
        "--benchmark-autosave", "--infer-replay=latest", "--infer-baseline=1", "--infer-gate=kl<=0.1,nll:0.1%"
    )
    assert result.ret == 1
    said = " ".join(result.stdout.str().split())
    assert "kl<=0.1 does not hold in 2 of 2 prompts" in said
    assert "output differs from token 1" in said
    rows, _ = suite_of.stored(2)
    assert rows["first"].metrics["kl"].value == pytest.approx(KL, abs=1e-6)
    assert rows["first"].fidelity.split.candidate.id == 1


def test_a_run_that_replays_says_how_far_it_is_without_a_gate(suite_of):  # noqa: F811
    suite_of.run("--benchmark-autosave")
    suite_of.script(first=1, p=AFTER)
    said = " ".join(suite_of.run("--infer-replay=latest").stdout.str().split())
    assert "first: output differs from token 1" in said
    suite_of.script()
    said = " ".join(suite_of.run("--infer-replay=latest").stdout.str().split())
    assert "in all prompts, the furthest with KL 0, top-1 100 %: arithmetic" in said


def test_a_test_that_replays_can_assert_its_distance(suite_of):  # noqa: F811
    suite_of.run("--benchmark-autosave")
    suite_of.pytester.makepyfile(
        test_suite="""
        from pytest_infer.metrics import summarize

        def test_prompt(infer, prompt):
            assert summarize(infer(prompt))["kl"].value == 0
        """
    )
    suite_of.run("--infer-replay=latest").assert_outcomes(passed=2)


@pytest.mark.parametrize("rule", ["output:close", "kl<=0.1", "nll:1%", "top1>=99%"])
def test_a_rule_about_a_round_that_is_left_out_is_refused_at_once(suite_of, rule):  # noqa: F811
    result = suite_of.run("--infer-no-profile", f"--infer-gate={rule}")
    assert result.ret == 4
    assert f"gate rule '{rule}' needs the profile round: leave out --infer-no-profile" in result.stderr.str()


def test_a_sweep_has_fidelity_beside_speed(swept):  # noqa: F811
    result = swept.run("--infer-engine=swept", "--infer-sweep=dtype=float32,bfloat16")
    text = result.stdout.str()
    assert re.search(r"^configuration .* KL +top-1", text, re.MULTILINE)
    (line,) = re.findall(r"^dtype=bfloat16 .*$", text, re.MULTILINE)
    assert line.split()[-2:] == ["0.173", "0"]
