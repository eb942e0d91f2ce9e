"""A regression that a commit message or bench/accepted.toml accepts in a run of pytest."""

import json

import pytest
from scratch import CONFTEST, PROMPTS, History

FAST, SLOWER = 0.01, 0.0111
ENTRY = '[[accept]]\nmetric = "decode"\nbound = "{bound}"\nreason = "exact softmax"\n'


@pytest.fixture
def repository(suite):
    made = History(suite(engine=CONFTEST, prompts=PROMPTS, virtual=True).path)
    made.path.joinpath("bench").mkdir()
    made.commit(decode=FAST)
    return made


@pytest.fixture
def gate(pytester):
    def run(*options):
        own = (
            "--infer-against=HEAD~1",
            "--infer-turns=round",
            "--infer-no-profile",
            "--infer-gate=tpot:3%",
            "-k",
            "first",
        )
        return pytester.runpytest_subprocess(*own, *options)

    return run


def test_a_commit_message_accepts_it_and_the_run_may_be_a_baseline(repository, gate):
    repository.commit("Exact softmax [infer-accept: decode 15%: needed]", decode=SLOWER)
    result = gate("--benchmark-autosave")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "decode 11 % slower*; accepted",
            "*accepted (up to 15 %)",
            "1 accepted",
            "  accepted: commit *: needed",
            "gate *: passed",
        ]
    )
    (run,) = repository.path.glob(".benchmarks/*/*.json")
    kept = json.loads(run.read_text())["pytest_infer"]["gate"]
    assert (kept["result"], {j["verdict"] for j in kept["judgements"]}) == ("passed", {"accepted"})


def test_an_entry_that_the_base_has_is_spent_and_what_would_accept_it_is_shown(repository, gate):
    repository.path.joinpath("bench", "accepted.toml").write_text(ENTRY.format(bound="15%"))
    repository.commit()
    repository.commit(decode=SLOWER)
    result = gate()
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            "no longer accepted: decode 15% (bench/accepted.toml: *: the base*",
            "to accept it, in a commit message:",
            "  [[]infer-accept: tpot[[]first[]] 12%: WHY]",
        ]
    )


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        (ENTRY.format(bound="a lot"), "*bench/accepted.toml: 'decode a lot': the bound is a share*"),
        (ENTRY.format(bound="5%") + 'prompt = "frist"\n', "*'decode[[]frist] 5%' is about no prompt; near it: first"),
        (None, "*commit ????????: *cannot be read; write [[]infer-accept: METRIC 5%: REASON]"),
    ],
)
def test_a_bad_entry_is_one_line_before_anything_is_measured(repository, gate, entry, line):
    if entry is not None:
        repository.path.joinpath("bench", "accepted.toml").write_text(entry)
    repository.commit("Exact softmax" + (" [infer-accept: decode]" if entry is None else ""))
    result = gate()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: pytest-infer: {line}"])
