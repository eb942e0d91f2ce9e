"""Options that an engine of somebody's own ignores are refused, or named."""

import pytest

GIVEN = ("--infer-model=nosuch", "--infer-dtype=bfloat16", "--infer-threads=7", "--infer-quantization=int8")
LEARNS = """
@pytest.fixture(scope="session")
def engine({fixture}):
    return Scripted()
"""
FOLLOWS = """
Scripted.honours = lambda self: frozenset({names})
"""


def said(result):
    return " ".join(f"{result.stdout} {result.stderr}".split())


@pytest.mark.parametrize(
    "given",
    [
        *([option] for option in GIVEN),
        GIVEN,
        ["--infer-revision=v1"],
        ["--infer-device=cpu"],
        ["--infer-no-cache"],
        ["--infer-compile"],
        ["--infer-sample=temperature=1"],
        ["--infer-attention=eager"],
        ["--infer-experts-implementation=eager"],
        ["--infer-trust-remote-code"],
        ["--infer-engine=transformers"],
    ],
    ids=str,
)
def test_what_no_test_can_follow_is_refused(suite, given):
    result = suite().runpytest(*given)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    line = said(result)
    assert "the `engine` fixture that test_suite.py::test_prompt[first] overrides does not follow" in line
    assert all(option.partition("=")[0] in line for option in given)
    assert "passed" not in line


@pytest.mark.parametrize("given", [[], ["--infer-rounds=2"], ["--infer-max-new-tokens=2"], ["--infer-ignore-eos"]])
def test_what_the_harness_follows_is_not(suite, given):
    result = suite().runpytest(*given)
    result.assert_outcomes(passed=2)
    assert "no effect" not in said(result)


def test_an_ini_file_is_named_and_not_refused(suite):
    pytester = suite()
    pytester.makeini("[pytest]\ninfer_dtype = bfloat16\ninfer_no_cache = true\n")
    result = pytester.runpytest()
    result.assert_outcomes(passed=2)
    assert "! infer_dtype, infer_no_cache: no effect on 2 of 2 tests, which make their own engine" in said(result)


@pytest.mark.parametrize("fixture", ["infer_load", "request", "pytestconfig", "options", "deep"])
def test_a_fixture_that_can_learn_of_them_is_asked(suite, fixture):
    more = """
    @pytest.fixture(scope="session")
    def options(infer_load):
        return infer_load

    @pytest.fixture(scope="session")
    def deep(options):
        return options
    """
    result = suite(engine=more + LEARNS.format(fixture=fixture).replace("\n", "\n    ")).runpytest(*GIVEN[1:3])
    result.assert_outcomes(passed=2)
    assert "--infer-dtype, --infer-threads: the engine does not say whether it follows them" in said(result)


OWN = """
import pytest
from conftest import Scripted

@pytest.mark.parametrize("engine", [Scripted()], ids=["own"], scope="session")
def test_prompt(engine, infer, prompt):
    infer(prompt)
"""
PYTESTS = """
@pytest.fixture(scope="session")
def engine(tmp_path_factory, record_testsuite_property):
    return Scripted()
"""


@pytest.mark.parametrize(
    "own",
    [{"engine": LEARNS.format(fixture="infer_load"), "test": OWN}, {"engine": PYTESTS}],
    ids=["a parameter of the test", "made from fixtures of pytest"],
)
def test_what_cannot_learn_of_them_whatever_it_is_made_from(suite, own):
    result = suite(**own).runpytest("--infer-threads=7")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "--infer-threads: the `engine` fixture that" in said(result)


@pytest.mark.parametrize(
    ("names", "ignored"),
    [
        ("{'threads'}", "! --infer-dtype: no effect"),
        ("{'dtype'}", "! --infer-threads: no effect"),
        ("()", "! --infer-dtype, --infer-threads: no effect"),
        ("{'dtype', 'threads'}", None),
    ],
)
def test_an_engine_says_what_it_follows(suite, names, ignored):
    engine = FOLLOWS.format(names=names) + LEARNS.format(fixture="infer_load")
    result = suite(engine=engine).runpytest(*GIVEN[1:3])
    result.assert_outcomes(passed=2)
    assert (ignored is None) == ("no effect" not in said(result))
    assert ignored is None or ignored in said(result)


def test_an_engine_made_from_ours_follows_what_ours_does(suite):
    pytester = suite(engine="")
    pytester.makeconftest(
        """
        import pytest

        @pytest.fixture(scope="session")
        def engine(engine):
            return engine
        """
    )
    # It gets as far as the standard engine's own check.
    result = pytester.runpytest("--infer-dtype=float7")
    assert "unknown dtype 'float7'" in said(result)
    assert "does not follow" not in said(result)


def test_where_other_tests_follow_them_they_are_named(suite):
    pytester = suite()
    pytester.makepyfile(
        test_other="""
        import pytest
        from conftest import Scripted

        @pytest.fixture(scope="session")
        def engine(infer_load):
            return Scripted()

        def test_other(infer):
            infer("one")
        """
    )
    result = pytester.runpytest("--infer-threads=2")
    result.assert_outcomes(passed=3)
    assert "! --infer-threads: no effect on 2 of 3 tests, which make their own engine" in said(result)


INSTALLED = """
class Told(Scripted):
    def __init__(self, options):
        super().__init__()

    def honours(self):
        return HONOURS
"""


@pytest.fixture
def installed(suite, installs):
    """Return a function: what an installed engine says that it follows to a run with options."""
    pytester = suite(engine="del engine")

    def run(honours, *given):
        installs(INSTALLED.replace("HONOURS", honours))
        return pytester.runpytest("--infer-engine=told", *given)

    return run


def test_an_installed_engine_refuses_what_it_says_it_does_not_follow(installed):
    result = installed("frozenset({'threads'})", *GIVEN[1:])
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "--infer-dtype, --infer-quantization: the engine 'told' does not follow them" in said(result)
    installed("frozenset({'threads'})", GIVEN[2]).assert_outcomes(passed=2)


def test_an_installed_engine_that_says_nothing_is_named(installed):
    result = installed("None", *GIVEN[1:3])
    result.assert_outcomes(passed=2)
    assert "--infer-dtype, --infer-threads: the engine does not say whether it follows them" in said(result)
    assert "Engine.honours" not in said(installed("None"))
