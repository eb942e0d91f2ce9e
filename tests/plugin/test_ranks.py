"""A run that is one process of several: the first stores and shows, the others measure in silence."""

import json

import pytest


@pytest.fixture
def rank(suite, monkeypatch):
    """Return a function that runs the suite as one rank of two."""

    def run(number, *arguments, **made):
        monkeypatch.setenv("RANK", str(number))
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("PYTEST_ADDOPTS", "")  # a run without options begins with its first test
        return suite(**made).runpytest("--benchmark-autosave", *arguments)

    return run


def stored(pytester):
    return [path for path in pytester.path.rglob("*.json") if ".cache" not in path.parts]


@pytest.mark.parametrize("option", [(), ("--infer-rounds=2",)])
def test_a_rank_that_follows_stores_nothing_and_shows_no_table(rank, pytester, option):
    result = rank(1, *option, "--junitxml=results.xml")
    assert result.ret == 0
    assert stored(pytester) == []
    assert not list(pytester.path.rglob("results.xml"))
    assert not list(pytester.path.rglob("nodeids"))
    assert not list(pytester.path.rglob(".journal"))
    shown = result.stdout.str() + result.stderr.str()
    assert shown.strip() == ""


def test_a_run_without_a_test_of_ours_says_in_each_process_what_pytest_says(pytester, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("PYTEST_ADDOPTS", "")  # no option of ours
    pytester.makepyfile("def test_other():\n    assert True\n")
    result = pytester.runpytest()
    result.stdout.fnmatch_lines(["*test session starts*", "platform *", "collected 1 item", "*1 passed*"])
    pytester.makepyfile(test_broken="import nothing_of_this_name\n")
    broken = pytester.runpytest()
    broken.stdout.fnmatch_lines(["*test session starts*", "*nothing_of_this_name*", "*1 error*"])


def test_a_failure_of_one_rank_is_a_line_of_its_own(rank):
    result = rank(1, test="def test_prompt(infer, prompt):\n    infer(prompt)\n    assert 1 == 2\n")
    assert result.ret == 1
    result.stderr.fnmatch_lines(["pytest-infer: rank 1: *test_prompt?first? (call): *assert 1 == 2"])


def test_the_first_rank_stores_one_run_with_how_many_there_are(rank, pytester):
    result = rank(0)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["at most * MiB* in rank 0, — in rank 1 (*"])
    (file,) = stored(pytester)
    blocks = [row["extra_info"]["pytest_infer"] for row in json.loads(file.read_text())["benchmarks"]]
    told = [block["ranks"] for block in blocks if block["phase"] == "total"]
    assert [one["size"] for one in told] == [2, 2]
    assert told[0]["memory"][0]["peak_rss_bytes"] > 0
    assert "torch is not loaded" in told[0]["memory"][1]["absent"]


def test_a_rank_that_follows_neither_gates_nor_reports(rank, pytester):
    result = rank(1, "--infer-gate=ttft<=0.000001ms", "--infer-report=page.html", "--infer-advice")
    assert result.ret == 0
    assert not pytester.path.joinpath("page.html").exists()
    assert rank(0, "--infer-gate=ttft<=0.000001ms").ret != 0


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("option", ["--infer-against=self", "--infer-replay=latest", "--infer-resume"])
def test_what_ranks_cannot_do_alike_is_refused_by_each(rank, number, option):
    result = rank(number, option)
    assert result.ret == 4
    result.stderr.fnmatch_lines(
        [f"ERROR: pytest-infer: {option.partition('=')[0]} is for one process, and this run has 2*"]
    )


def test_no_rank_repeats_a_round_that_another_would_not(rank, pytester):
    engine = (
        "Scripted.delays = [0.0] * 3\n"
        "from pytest_infer.measure import disturbance\n"
        "disturbance.reasons = lambda counters, usable_cores: ('always',)\n"
    )
    rank(0, "--infer-rounds=3", engine=engine)
    (file,) = stored(pytester)
    blocks = [row["extra_info"]["pytest_infer"] for row in json.loads(file.read_text())["benchmarks"]]
    assert {block["rounds"]["repeated"] for block in blocks if block["phase"] == "total"} == {0}
