"""What a pytest run loads of this plugin: next to nothing, until a test asks for it."""

import subprocess

import pytest

LISTS_MODULES = """
import sys

def pytest_unconfigure():
    print("loaded:", *sorted(sys.modules))
"""
HEAVY = {"filelock", "jinja2", "msgspec", "multiprocessing", "numpy", "psutil", "rich", "scipy", "torch", "typer"}
MOST = 5
"""The package, the plugin, its room, the options and the fixtures."""


@pytest.fixture(autouse=True)
def _no_options(monkeypatch, _plain_environment):
    """An option on the command line is reason enough to load all."""
    monkeypatch.delenv("PYTEST_ADDOPTS")


@pytest.fixture
def loaded(cold):
    """Run the tests of the folder in a fresh process, and return the modules of ours and the heavy ones."""

    def run(*args):
        cold.makeconftest(LISTS_MODULES)
        result = cold.runpytest_subprocess(*args)
        assert result.ret == 0
        (line,) = (line for line in result.outlines if line.startswith("loaded: "))
        names = line.split()[1:]
        ours = [name for name in names if name.partition(".")[0] == "pytest_infer"]
        return ours, HEAVY & {name.partition(".")[0] for name in names}

    return run


def test_a_run_without_a_test_of_ours_loads_next_to_nothing(pytester, loaded):
    pytester.makepyfile("def test_it(): pass\n")
    ours, heavy = loaded()
    assert "pytest_infer.plugin" in ours
    assert len(ours) <= MOST
    assert heavy == set()


def test_nor_does_one_with_keys_in_its_ini_file(pytester, loaded):
    pytester.makeini("[pytest]\ninfer_rounds = 7\ninfer_gate = ttft:5%\ninfer_against = main\n")
    pytester.makepyfile("def test_it(): pass\n")
    ours, heavy = loaded()
    assert (len(ours) <= MOST, heavy) == (True, set())


def test_nor_do_fixtures_of_our_names_that_are_not_ours(pytester, loaded):
    pytester.makepyfile("""
        import pytest

        @pytest.fixture
        def model(): return 1

        @pytest.fixture(params=[1, 2])
        def engine(request, model): return request.param

        @pytest.mark.parametrize("prompt", "ab")
        def test_it(model, engine, prompt): pass
    """)
    ours, heavy = loaded()
    assert (len(ours) <= MOST, heavy) == (True, set())


def test_a_test_of_ours_loads_us_but_no_torch(pytester, loaded):
    pytester.makepyfile("def test_it(system_sampler): pass\n")
    ours, heavy = loaded()
    assert len(ours) > MOST
    assert "torch" not in heavy


def test_a_wrong_key_is_one_line_where_a_test_asks_for_us(suite):
    pytester = suite(engine="def pytest_runtest_setup(item): print('measured')")
    pytester.makeini("[pytest]\ninfer_rounds = none\n")
    result = pytester.runpytest("-s")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert result.errlines == ["ERROR: pytest-infer: infer_rounds takes a whole number, not 'none'", ""]
    result.stdout.no_fnmatch_line("*measured*")


def test_a_wrong_key_is_no_trouble_where_none_does(pytester):
    pytester.makeini("[pytest]\ninfer_rounds = none\ninfer_against = x\n")
    pytester.makepyfile("def test_it(): pass\n")
    result = pytester.runpytest()
    result.assert_outcomes(passed=1)
    assert result.ret == 0


def test_a_wrong_key_is_told_where_a_test_asks_late(pytester):
    pytester.makeini("[pytest]\ninfer_rounds = none\n")
    pytester.makepyfile("def test_it(request): request.getfixturevalue('system_sampler')\n")
    result = pytester.runpytest()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["pytest-infer: infer_rounds takes a whole number, not 'none'"])


def test_a_test_that_asks_late_gets_what_it_asks_for(pytester):
    pytester.makepyfile("""
        def test_it(request):
            with request.getfixturevalue("system_sampler")() as sampled: pass
            assert sampled.record.counters.wall_s > 0
    """)
    pytester.runpytest().assert_outcomes(passed=1)


def test_keys_alone_measure_as_options_do(suite):
    pytester = suite()
    pytester.makeini(
        "[pytest]\ninfer_rounds = 2\ninfer_repeat_disturbed = 0\ninfer_no_probe = true\ninfer_report = x.html\n"
    )
    result = pytester.runpytest("--benchmark-autosave")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*inference*", "first *", "second *", "*x.html"])
    assert pytester.path.joinpath("x.html").exists()


def test_a_method_of_a_unittest_class_may_measure(pytester, suite):
    suite(prompts=None)
    pytester.makepyfile(
        test_suite="""
        import unittest

        import pytest

        class TestIt(unittest.TestCase):
            @pytest.fixture(autouse=True)
            def _take(self, infer): self.infer = infer

            def test_it(self): self.infer("one two")
    """
    )
    result = pytester.runpytest()
    result.assert_outcomes(passed=1)


@pytest.mark.parametrize(("rev", "said"), [("none", "*git finds no such commit*"), ("self", None)])
def test_the_other_commit_may_be_named_in_the_ini_file(suite, rev, said):
    pytester = suite()
    for command in ("init -q", "add .", "-c user.name=x -c user.email=x commit -qm x"):
        subprocess.run(["git", *command.split()], cwd=pytester.path, check=True)
    pytester.makeini(
        f"[pytest]\ninfer_against = {rev}\ninfer_min_pairs = 2\ninfer_max_rounds = 2\ninfer_repeat_disturbed = 0\n"
    )
    result = pytester.runpytest_subprocess()
    if said is None:
        result.assert_outcomes(passed=2)
        return
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: pytest-infer: {said}"])
