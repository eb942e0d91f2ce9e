"""Which tests get prompts, from where, and that suites which have nothing to do with us are left alone."""

import json
import textwrap

import pytest

ONE_PROMPT = '[[prompt]]\nname = "{name}"\ntext = "{name} text"\n'


def write(pytester, name, text):
    path = pytester.path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def ids(result):
    return [line.split()[0] for line in result.stdout.lines if "::" in line and ("PASSED" in line or "FAILED" in line)]


def said(result):
    return f"{result.stdout}\n{result.stderr}"


def assert_clear(result, *parts):
    """Assert that the run failed, that some one line holds all of `parts`, and that no traceback was shown."""
    text = said(result)
    assert result.ret not in (0, pytest.ExitCode.INTERNAL_ERROR), text
    assert "Traceback" not in text
    assert "INTERNALERROR" not in text
    assert "During handling of the above exception" not in text, "the same line twice, chained"
    assert any(all(part in line for part in parts) for line in text.splitlines()), text


# where prompts come from


def test_the_suite_beside_the_test_and_ids_are_names(suite):
    result = suite().runpytest("-v")
    result.assert_outcomes(passed=2)
    assert ids(result) == ["test_suite.py::test_prompt[first]", "test_suite.py::test_prompt[second]"]


def test_each_folder_has_its_own_suite(suite):
    pytester = suite(prompts=None)
    for folder in ("a", "b"):
        write(pytester, f"{folder}/prompts.toml", ONE_PROMPT.format(name=f"of {folder}"))
        write(pytester, f"{folder}/test_{folder}.py", "def test_it(infer, prompt):\n    infer(prompt)\n")
    pytester.path.joinpath("test_suite.py").unlink()
    result = pytester.runpytest("-v")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*test_it?of a?*PASSED*", "*test_it?of b?*PASSED*"])


def test_the_option_replaces_the_suite_beside_the_test(suite):
    pytester = suite()
    write(pytester, "other/mine.jsonl", '{"name": "mine", "text": "x"}\n')
    result = pytester.runpytest("-v", "--infer-prompts=other/mine.jsonl")
    result.assert_outcomes(passed=1)
    assert ids(result) == ["test_suite.py::test_prompt[mine]"]


def test_the_marker_comes_before_the_option(suite):
    pytester = suite(
        test="""
        import pytest
        from pytest_infer.prompts import Prompt

        @pytest.mark.infer_prompts(["x y", {"name": "table", "text": "z"}, Prompt(name="ready", text="w")])
        def test_prompt(infer, prompt):
            infer(prompt)
        """
    )
    result = pytester.runpytest("-v", "--infer-prompts=prompts.toml")
    result.assert_outcomes(passed=3)
    assert ids(result) == [f"test_suite.py::test_prompt[{name}]" for name in ("prompt-1", "table", "ready")]


def test_a_file_in_a_marker_is_beside_the_test(suite):
    pytester = suite(prompts=None)
    test = """
    import pytest

    @pytest.mark.infer_prompts([{"name": "long", "file": "texts/long.txt"}])
    def test_it(infer, prompt):
        assert prompt.text == "beside the test"
        infer(prompt)
    """
    write(pytester, "bench/test_it.py", test)
    write(pytester, "bench/texts/long.txt", "beside the test")
    write(pytester, "texts/long.txt", "beside the configuration")
    pytester.path.joinpath("test_suite.py").unlink()
    pytester.runpytest("bench").assert_outcomes(passed=1)


def test_the_marker_of_a_module_and_of_a_class(suite):
    pytester = suite(
        test="""
        import pytest

        pytestmark = pytest.mark.infer_prompts([{"name": "module", "text": "x"}])

        def test_module(infer, prompt):
            infer(prompt)

        @pytest.mark.infer_prompts([{"name": "class", "text": "x"}])
        class TestClass:
            def test_class(self, infer, prompt):
                infer(prompt)
        """
    )
    result = pytester.runpytest("-v")
    result.assert_outcomes(passed=2)
    assert [name.rpartition("[")[2] for name in ids(result)] == ["module]", "class]"]


def test_prompts_are_crossed_with_parameters_of_the_test(suite):
    pytester = suite(
        test="""
        import pytest

        @pytest.mark.parametrize("n", [1, 2])
        def test_prompt(infer, prompt, n):
            infer(prompt)
        """
    )
    result = pytester.runpytest("-v")
    result.assert_outcomes(passed=4)
    assert all("first" in name or "second" in name for name in ids(result))


def test_a_prompt_can_be_chosen_by_its_name(suite):
    suite().runpytest("-k", "second").assert_outcomes(passed=1, deselected=1)


def test_a_test_may_ask_for_the_prompt_alone(suite):
    suite(test="def test_it(prompt):\n    assert prompt.text\n").runpytest().assert_outcomes(passed=2)


def test_plain_text(suite):
    pytester = suite(
        test="""
        def test_it(infer):
            record = infer("plain text")
            assert record.prompt.name == "test_it"
            assert record.rounds[0].trace.prompt_tokens == 2
        """,
        prompts=None,
    )
    pytester.runpytest("--benchmark-autosave").assert_outcomes(passed=1)


# what is not ours

OWN_PROMPT = {
    "string": '@pytest.mark.parametrize("prompt", ["mine"])\ndef test_it(prompt):',
    "several names": '@pytest.mark.parametrize("a, prompt", [(1, "mine")])\ndef test_it(a, prompt):',
    "list": '@pytest.mark.parametrize(["a", "prompt"], [(1, "mine")])\ndef test_it(a, prompt):',
    "tuple": '@pytest.mark.parametrize(("prompt",), [("mine",)])\ndef test_it(prompt):',
    "keyword": '@pytest.mark.parametrize(argnames="prompt", argvalues=["mine"])\ndef test_it(prompt):',
    "fixture of the module": '@pytest.fixture\ndef prompt():\n    return "mine"\n\ndef test_it(prompt):',
    "fixture with parameters": (
        '@pytest.fixture(params=["mine"])\ndef prompt(request):\n    return request.param\n\ndef test_it(prompt):'
    ),
    "indirect": (
        "@pytest.fixture\ndef prompt(request):\n    return request.param\n\n"
        '@pytest.mark.parametrize("prompt", ["mine"], indirect=True)\ndef test_it(prompt):'
    ),
    "hook": (
        "def pytest_generate_tests(metafunc):\n    metafunc.parametrize('prompt', ['mine'])\n\ndef test_it(prompt):"
    ),
    "renamed fixture": (
        '@pytest.fixture(name="prompt")\ndef of_another_name():\n    return "mine"\n\ndef test_it(prompt):'
    ),
}


@pytest.mark.parametrize("option", [False, True], ids=["beside", "option"])
@pytest.mark.parametrize("own", OWN_PROMPT.values(), ids=OWN_PROMPT)
def test_a_prompt_of_the_tests_own_is_left_alone(pytester, own, option):
    write(pytester, "prompts.toml", ONE_PROMPT.format(name="ours"))
    pytester.makepyfile(f'import pytest\n\n{own}\n    assert prompt == "mine"\n')
    result = pytester.runpytest(*(["--infer-prompts=prompts.toml"] if option else []))
    result.assert_outcomes(passed=1)


@pytest.mark.parametrize("option", [False, True], ids=["beside", "option"])
def test_a_prompt_fixture_in_a_conftest_is_left_alone(pytester, option):
    write(pytester, "prompts.toml", ONE_PROMPT.format(name="ours"))
    pytester.makeconftest("import pytest\n\n@pytest.fixture\ndef prompt():\n    return 'mine'\n")
    pytester.makepyfile("def test_it(prompt):\n    assert prompt == 'mine'\n")
    pytester.runpytest(*(["--infer-prompts=prompts.toml"] if option else [])).assert_outcomes(passed=1)


@pytest.mark.parametrize("when", ["tryfirst", "trylast"])
def test_another_plugin_that_parametrizes_prompt_is_left_alone(pytester, when):
    write(pytester, "prompts.toml", ONE_PROMPT.format(name="ours"))
    pytester.makepyfile(
        other_plugin=f"""
        import pytest

        @pytest.hookimpl({when}=True)
        def pytest_generate_tests(metafunc):
            if "prompt" in metafunc.fixturenames:
                metafunc.parametrize("prompt", ["mine"])
        """,
        test_it="def test_it(prompt):\n    assert prompt == 'mine'\n",
    )
    pytester.syspathinsert()
    pytester.runpytest("-p", "other_plugin", "--infer-prompts=prompts.toml").assert_outcomes(passed=1)


def test_a_fixture_that_overrides_and_uses_ours(suite):
    pytester = suite(
        test="""
        import dataclasses

        import pytest

        @pytest.fixture
        def short(prompt):
            return dataclasses.replace(prompt, max_new_tokens=1)

        def test_it(infer, short):
            assert infer(short).prompt.limits.max_new_tokens == 1
        """
    )
    pytester.runpytest().assert_outcomes(passed=2)


@pytest.mark.parametrize(
    "own",
    [
        '@pytest.fixture\ndef model():\n    return "mine"\n\ndef test_it(model):',
        '@pytest.mark.parametrize("model", ["mine"])\ndef test_it(model):',
    ],
    ids=["fixture", "parameter"],
)
def test_a_model_of_the_tests_own_is_left_alone(pytester, own):
    write(pytester, "prompts.toml", ONE_PROMPT.format(name="ours"))
    pytester.makepyfile(f'import pytest\n\n{own}\n    assert model == "mine"\n')
    pytester.runpytest("--infer-prompts=prompts.toml").assert_outcomes(passed=1)


def test_a_suite_that_measures_nothing_shows_and_saves_nothing(pytester):
    pytester.makepyfile("def test_it(benchmark):\n    benchmark(int)\n\ndef test_other():\n    pass\n")
    result = pytester.runpytest("--benchmark-autosave")
    result.assert_outcomes(passed=2)
    assert "inference" not in result.stdout.str()
    (path,) = pytester.path.glob(".benchmarks/*/*")
    assert path.suffix == ".json"
    assert "pytest_infer" not in path.read_text()


def test_a_doctest_and_a_unittest_are_no_trouble(pytester):
    case = "import unittest\nclass T(unittest.TestCase):\n    def test_it(self): pass\n"
    pytester.makepyfile(f'"""\n>>> 1 + 1\n2\n"""\n{case}')
    pytester.runpytest("--doctest-modules").assert_outcomes(passed=2)


# no prompts, and errors at collection


def test_without_a_suite_the_test_says_what_to_do(suite):
    result = suite(prompts=None).runpytest()
    result.assert_outcomes(errors=1)
    assert_clear(result, "no prompts for this test", "prompts.toml", "--infer-prompts FILE", "infer_prompts([")


@pytest.mark.parametrize(
    ("prompts", "parts"),
    [
        ('[[prompt]]\nname = "a"\ntext = \n', ["prompts.toml", "not valid TOML", "line 3"]),
        ('[[prompt]]\nname = "a"\ntetx = "x"\n', ["unknown key 'tetx'", "max_new_tokens"]),
        ('[[prompt]]\nname = "a"\ntext = ""\n', ["'a'", "the prompt is empty"]),
        ('[[prompt]]\nname = "a"\ntext = "x"\n' * 2, ["two prompts are named 'a'"]),
        ('[[prompt]]\nname = "a"\nfile = "none.txt"\n', ["cannot read", "none.txt"]),
        ("", ["holds no prompt"]),
        ('[[prompts]]\nname = "a"\ntext = "x"\n', ["unknown table 'prompts'", "defaults, prompt"]),
        (
            '[defaults]\ntext = "x"\n[[prompt]]\nname = "a"\n',
            ["unknown key 'text'", "group, max_new_tokens, stop, tags"],
        ),
        ('[[prompt]]\nname = "a"\ntext = "x"\nfile = "y"\n', ["'a'", "exactly one of text, file, messages"]),
        ('[[prompt]]\nname = "a"\n', ["'a'", "exactly one of text, file, messages"]),
        ('[[prompt]]\ntext = "x"\n', ["prompt 1", "`name`"]),
        (
            '[[prompt]]\nname = "a"\ntext = "x"\nmax_new_tokens = 0\n',
            ["'a'", "max_new_tokens must be 1 or more, not 0"],
        ),
        ('[[prompt]]\nname = "a"\ntext = "x"\nmax_new_tokens = "3"\n', ["'a'", "max_new_tokens"]),
    ],
)
def test_each_error_of_a_suite_is_one_clear_line_at_collection(suite, prompts, parts):
    result = suite(prompts=prompts).runpytest()
    result.assert_outcomes(errors=1)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert_clear(result, *parts)


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("s.jsonl", '{"name": "a", "text": "x"}\n{"name": \n', ["s.jsonl:2", "not valid JSON"]),
        ("s.jsonl", '{"name": "a", "text": "\\ud800"}\n', ["s.jsonl: prompt 1 ('a')", "half a character"]),
        ("s.jsonl", '["a"]\n', ["s.jsonl: prompt 1: is a list"]),
        ("s.txt", "x\n", ["s.txt", "a .toml or a .jsonl file"]),
        ("s.toml", None, ["s.toml: no such prompt suite", "--infer-prompts FILE"]),
    ],
)
def test_each_error_of_a_suite_that_was_named(suite, name, content, parts):
    pytester = suite()
    if content is not None:
        write(pytester, name, content)
    result = pytester.runpytest(f"--infer-prompts={name}")
    result.assert_outcomes(errors=1)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert_clear(result, *parts)


@pytest.mark.parametrize(
    ("marker", "parts"),
    [
        ("'text'", ["test_suite.py::test_prompt", "takes a list"]),
        ("", ["test_suite.py::test_prompt", "infer_prompts([…])"]),
        ("['a'], ['b']", ["infer_prompts([…])"]),
        ("prompts=['a']", ["infer_prompts([…])"]),
        ("[3]", ["test_suite.py::test_prompt: prompt 1 is a int"]),
        ("['a', chr(0xd800)]", ["test_suite.py::test_prompt: prompt 2", "half a character"]),
        ("['a', {'name': 'b', 'file': chr(0)}]", ["test_suite.py::test_prompt: prompt 2", "cannot read"]),
        ("['a', __import__('pytest_infer.prompts').prompts.Prompt(name='b')]", ["prompt 2 ('b')", "exactly one of"]),
        ("[{'nam': 'a'}]", ["unknown key 'nam'", "name"]),
        ("[]", ["test_suite.py::test_prompt", "no prompt"]),
    ],
)
def test_each_error_of_a_marker(suite, marker, parts):
    test = f"import pytest\n@pytest.mark.infer_prompts({marker})\ndef test_prompt(infer, prompt):\n    infer(prompt)\n"
    result = suite(test=test).runpytest()
    result.assert_outcomes(errors=1)
    assert_clear(result, *parts)


@pytest.mark.parametrize("given", ["Prompt(name='a', text=chr(0xd800))", "chr(0xd800)", "Prompt(name='a')"])
def test_a_prompt_made_in_the_test_is_refused_in_one_line(suite, given):
    test = f"from pytest_infer.prompts import Prompt\ndef test_it(infer):\n    infer({given})\n"
    result = suite(test=test).runpytest()
    result.assert_outcomes(failed=1)
    assert_clear(result, "test_suite.py::test_it: infer() (")


def test_infer_that_is_asked_for_too_late_is_refused_before_it_measures(suite):
    result = suite(test="def test_it(request):\n    request.getfixturevalue('infer')('one')\n").runpytest()
    result.assert_outcomes(failed=1)
    assert_clear(result, "`infer` must be among the arguments")


def test_a_prompt_of_the_users_own_parameters_is_refused_before_the_model(suite):
    test = """
    import pytest
    from pytest_infer.prompts import Prompt

    @pytest.mark.parametrize("prompt", [Prompt(name="a", text=chr(0xd800))])
    def test_it(infer, prompt):
        infer(prompt)
    """
    result = suite(test=test).runpytest()
    assert_clear(result, "test_it", "half a character")


def test_an_error_of_the_suite_stops_before_anything_is_loaded(suite):
    pytester = suite(
        engine="Scripted.load = lambda self: open('loaded', 'w')", prompts='[[prompt]]\nname = "a"\ntext = ""\n'
    )
    pytester.runpytest()
    assert not pytester.path.joinpath("loaded").exists()


# the model's context


def test_a_prompt_longer_than_the_context_is_refused(suite):
    result = suite(engine="Scripted.context = 4").runpytest()
    result.assert_outcomes(failed=2)
    assert_clear(result, "prompt 'first': 3 tokens and 3 new ones do not fit", "context of 4", "max_new_tokens")


def test_a_prompt_that_just_fits(suite):
    suite(engine="Scripted.context = 6\nScripted.delays = [0.0] * 3").runpytest().assert_outcomes(passed=2)


def test_a_prompt_without_tokens_is_refused(suite):
    result = suite(engine="Scripted.encode = lambda self, prompt: []").runpytest("-k", "first")
    result.assert_outcomes(failed=1, deselected=1)
    assert_clear(result, "prompt 'first' has no tokens")


# fixtures of the user's own


def test_an_engine_of_the_users_own_in_the_test_module(suite):
    pytester = suite(
        test="""
        import pytest
        from conftest import Scripted

        class Mine(Scripted):
            def decode(self, token_ids):
                return "mine"

        @pytest.fixture(scope="module")
        def engine():
            return Mine()

        @pytest.fixture(scope="module")
        def model(engine):
            return engine.load()

        def test_prompt(infer, prompt):
            assert infer(prompt).output.text == "mine"
        """
    )
    pytester.runpytest().assert_outcomes(passed=2)


def test_a_model_fixture_of_the_users_own_is_what_is_recorded(suite):
    pytester = suite(
        test="""
        import dataclasses

        import pytest

        @pytest.fixture(scope="session")
        def model(engine):
            return dataclasses.replace(engine.load(), name="patched")

        def test_prompt(infer, prompt):
            assert infer(prompt).model.name == "patched"
        """
    )
    pytester.runpytest().assert_outcomes(passed=2)


def test_the_model_fixture_describes_what_was_loaded(suite):
    pytester = suite(
        test="""
        def test_model(model):
            assert model.name == "scripted"
            assert model.load_s >= 0.02
        """,
        engine="""
        load = Scripted.load
        Scripted.load = lambda self: [time.sleep(0.02), load(self)][1]
        """,
    )
    pytester.runpytest().assert_outcomes(passed=1)


def test_the_model_is_loaded_once_a_run(suite):
    pytester = suite(
        engine="""
        load = Scripted.load

        def counted(self):
            with open("loads", "a") as file:
                file.write("x")
            return load(self)

        Scripted.load = counted
        Scripted.delays = [0.0]
        """
    )
    pytester.runpytest().assert_outcomes(passed=2)
    assert pytester.path.joinpath("loads").read_text() == "x"


@pytest.mark.parametrize("error", ["EngineError", "ModelError"])
def test_an_error_of_the_engine_is_one_line(suite, error):
    pytester = suite(
        engine=f"""
        from pytest_infer.errors import {error}

        def load(self):
            raise {error}("the weights are gone; fetch them again")

        Scripted.load = load
        """
    )
    result = pytester.runpytest("-k", "first")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert_clear(result, "the weights are gone; fetch them again")


def test_a_bug_in_the_users_engine_keeps_its_traceback(suite):
    pytester = suite(engine="Scripted.generate = lambda self, ids, limits, clock: {}['lost']")
    result = pytester.runpytest("-k", "first")
    result.assert_outcomes(failed=1, deselected=1)
    assert "KeyError: 'lost'" in said(result)
    assert "conftest.py" in said(result)


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ("return None", ["generated no token, or never called clock.tick"]),
        ("clock.tick([])", ["ticked without token ids"]),
        ("clock.tick([1] * 99)", ["ticked 99 tokens where 3 were asked for"]),
    ],
)
def test_an_engine_that_breaks_its_contract_is_one_line(suite, body, parts):
    engine = f"def generate(self, ids, limits, clock):\n    {body}\n\nScripted.generate = generate\n"
    result = suite(engine=engine).runpytest("-k", "first")
    result.assert_outcomes(failed=1, deselected=1)
    assert_clear(result, *parts)


def test_collect_only_loads_nothing(suite):
    pytester = suite(engine="for name in ('load', 'check', 'encode'):\n    setattr(Scripted, name, None)\n")
    result = pytester.runpytest("--collect-only", "-q", "--benchmark-autosave")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["test_suite.py::test_prompt?first?", "test_suite.py::test_prompt?second?"])
    assert not [p for p in pytester.path.rglob(".benchmarks/**/*") if p.is_file()]


def test_collect_only_with_the_default_engine_loads_no_torch(cold):
    write(cold, "prompts.toml", ONE_PROMPT.format(name="ours"))
    cold.makeconftest(
        "import sys\n\ndef pytest_unconfigure():\n"
        "    assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
    )
    cold.makepyfile("def test_it(infer, prompt):\n    infer(prompt)\n")
    result = cold.runpytest_subprocess("--collect-only", "-q", "--infer-model=/no/such")
    assert result.ret == 0, said(result)


def test_measuring_twice_in_a_test_is_refused(suite):
    pytester = suite(test="def test_it(infer):\n    infer('one')\n    infer('two')\n")
    result = pytester.runpytest()
    result.assert_outcomes(failed=1)
    assert_clear(result, "`infer` measures once a test", "parametrize")


def test_a_benchmark_used_before_is_refused(suite):
    pytester = suite(test="def test_it(infer, benchmark):\n    benchmark(int)\n    infer('one')\n")
    result = pytester.runpytest()
    result.assert_outcomes(failed=1)
    assert_clear(result, "`benchmark` was already used in this one")


def test_measuring_beside_other_benchmarks(suite):
    pytester = suite(
        test="""
        def test_prompt(infer, prompt):
            infer(prompt)

        def test_other(benchmark):
            assert benchmark(int) == 0
        """
    )
    pytester.runpytest("--benchmark-autosave").assert_outcomes(passed=3)


def test_the_system_sampler_counts_a_block(suite):
    pytester = suite(
        test="""
        import time

        import pytest
        from pytest_infer.errors import InferError

        def test_sampler(system_sampler):
            with system_sampler() as outer:
                with system_sampler() as inner:
                    ended = time.process_time() + 0.05
                    while time.process_time() < ended:
                        pass
                with pytest.raises(InferError, match="after"):
                    outer.record
            assert 0.05 <= inner.record.counters.cpu_s.value <= outer.record.counters.cpu_s.value
            assert inner.record.counters.wall_s <= outer.record.counters.wall_s
            assert inner.record.machine.usable_cores > 0
        """,
        prompts=None,
    )
    result = pytester.runpytest("--benchmark-autosave")
    result.assert_outcomes(passed=1)
    assert "inference" not in result.stdout.str()


def test_the_record_can_be_asserted_on(suite):
    pytester = suite(
        test="""
        from pytest_infer.metrics import summarize

        def test_prompt(infer, prompt):
            record = infer(prompt)
            assert record.output.text == "1 2 3"
            assert record.output.equal
            assert summarize(record)["generated_tokens"].value == 3
        """
    )
    pytester.runpytest("--infer-rounds=2").assert_outcomes(passed=2)


def test_the_weights_are_hashed_after_the_timed_load(suite):
    pytester = suite(
        test="""
        def test_model(model, infer):
            assert model.weights_sha256 == "loaded"
            assert model.load_s == 2.0
            assert infer("one two").model is model
        """,
        engine="""
        from types import SimpleNamespace

        from pytest_infer.measure.loading import timed

        now_s, state, plain_load = [0], [], Scripted.load
        timed.time = SimpleNamespace(perf_counter_ns=lambda: 10**9 * now_s[0])

        def load(self):
            now_s[0] += 2
            state.append("loaded")
            return plain_load(self)

        def weights_sha256(self):
            now_s[0] += 5
            return state.pop()

        Scripted.load, Scripted.weights_sha256 = load, weights_sha256
        """,
    )
    pytester.runpytest().assert_outcomes(passed=1)


def test_a_fixture_of_the_same_name_is_somebody_elses(suite):
    pytester = suite(
        test="""
        import pytest

        @pytest.fixture
        def infer():
            return 7

        def test_other(infer):
            assert infer == 7
        """
    )
    result = pytester.runpytest()
    result.assert_outcomes(passed=1)
    assert "not measured" not in result.stdout.str()


def test_only_what_measures_gets_our_clock_and_a_wrong_mark_is_told_of(suite):
    pytester = suite(
        test="""
        import pytest

        class TestOther:
            @pytest.fixture
            def infer(self):
                return 7

            def test_other(self, infer, request):
                assert request.node.get_closest_marker("benchmark") is None

        def test_prompt(infer, prompt):
            infer(prompt)

        @pytest.mark.benchmark("mine")
        def test_marked(infer, prompt):
            infer(prompt)
        """
    )
    result = pytester.runpytest()
    result.assert_outcomes(passed=3, errors=2)
    result.stdout.fnmatch_lines(["*benchmark mark can't have positional arguments*"])


def test_a_fixture_of_the_same_name_may_go_on_with_ours(suite):
    pytester = suite(
        test="""
        import pytest

        @pytest.fixture
        def infer(infer):
            return infer

        def test_prompt(infer, prompt):
            infer(prompt)
        """
    )
    result = pytester.runpytest("--benchmark-autosave")
    result.assert_outcomes(passed=2)
    assert "first" in result.stdout.str()


# fixtures of the user's own that are parametrized


NAMED = """
import dataclasses


class Named(Scripted):
    \"\"\"Writes down when it is loaded.\"\"\"

    def __init__(self, name):
        super().__init__()
        self.name = name

    def load(self):
        with open("loads", "a") as file:
            print(self.name, file=file)
        self.loaded = self.name
        return dataclasses.replace(super().load(), name=self.name)

    def decode(self, token_ids):
        return f"{self.loaded} {super().decode(token_ids)}"
"""
GIVEN = 'scope="session", params=["a", "b"]'
PARAMETRIZED = {
    "engine": f"""
        @pytest.fixture({GIVEN})
        def engine(request):
            return Named(request.param)
        """,
    "what the engine is made from": f"""
        @pytest.fixture({GIVEN}, ids=str.lower)
        def name(request):
            return request.param

        @pytest.fixture(scope="session")
        def made(name):
            return Named(name)

        @pytest.fixture(scope="session")
        def engine(made):
            return made
        """,
    "model": f"""
        @pytest.fixture(scope="session")
        def engine():
            return Named("")

        @pytest.fixture({GIVEN})
        def model(engine, request):
            engine.name = request.param
            return engine.load()
        """,
    "an engine that goes on with another": f"""
        @pytest.fixture(scope="session")
        def named():
            return Named

        @pytest.fixture({GIVEN})
        def engine(request, named):
            return named(request.param)

        class TestMore:
            @pytest.fixture(scope="session")
            def engine(self, engine):
                return engine

            def test_prompt(self, infer, prompt):
                infer(prompt)
        """,
}
MEASURES = """
def test_prompt(infer, prompt):
    record = infer(prompt)
    assert (record.model.name, record.output.text.split()[0]) == ("{name}", "{name}")
"""
IDS = ["a-first", "a-second", "b-first", "b-second"]


def mine(code, test="def test_prompt(infer, prompt):\n    infer(prompt)\n"):
    """Return the module of a test with fixtures of its own, and what its conftest has beside."""
    code = textwrap.dedent(code)
    return {"engine": NAMED, "test": f"import pytest\nfrom conftest import Named\n{code}\n{test}"}


def ids_of(result):
    return [line.partition("[")[2].rstrip("]") for line in result.outlines if "::test_prompt[" in line]


@pytest.mark.parametrize("code", PARAMETRIZED.values(), ids=PARAMETRIZED)
def test_what_an_engine_or_a_model_is_made_from_may_be_parametrized(suite, code):
    pytester = suite(**mine(code))
    tests = 8 if "TestMore" in code else 4
    pytester.runpytest().assert_outcomes(passed=tests)
    loads = pytester.path.joinpath("loads").read_text().split()
    assert list(dict.fromkeys(loads)) == ["a", "b"]
    assert set(ids_of(pytester.runpytest("--collect-only", "-q"))) == set(IDS)


@pytest.mark.parametrize("asked", ["engine, infer, prompt", "infer, prompt, model", "infer, prompt"])
def test_the_id_is_that_of_a_test_that_asks_for_the_engine_itself(suite, asked):
    test = f"def test_prompt({asked}):\n    infer(prompt)\n"
    result = suite(**mine(PARAMETRIZED["engine"], test)).runpytest("--collect-only", "-q")
    assert ids_of(result) == IDS


FOLDERS = {
    "an engine each": """
        @pytest.fixture(scope="session")
        def engine():
            return Named("{name}")
        """,
    "a model each": """
        @pytest.fixture(scope="session")
        def model(engine):
            engine.name = "{name}"
            return engine.load()
        """,
}


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a"), ("a::first", "b", "a::second")], ids=" ".join)
@pytest.mark.parametrize("code", FOLDERS.values(), ids=FOLDERS)
def test_each_folder_measures_its_own(suite, code, order):
    pytester = suite(engine=NAMED + '\nScripted = lambda: Named("")')
    pytester.path.joinpath("test_suite.py").unlink()
    pytester.makeini("[pytest]")
    for name in ("a", "b"):
        own = "import pytest\nfrom conftest import Named\n" + textwrap.dedent(code).format(name=name)
        write(pytester, f"{name}/test_{name}.py", f"{own}\n{MEASURES.format(name=name)}")
        write(pytester, f"{name}/prompts.toml", pytester.path.joinpath("prompts.toml").read_text())
    given = [
        f"{n}/test_{n}.py{f'::test_prompt[{p}]' if p else ''}" for n, _, p in (one.partition("::") for one in order)
    ]
    pytester.runpytest(*given).assert_outcomes(passed=4)


def test_a_model_that_another_test_asked_for_is_not_loaded_again(suite):
    test = "def test_it(model):\n    pass\n\ndef test_prompt(infer, prompt):\n    infer(prompt)\n"
    pytester = suite(engine=NAMED + '\nScripted = lambda: Named("a")', test=test)
    pytester.runpytest().assert_outcomes(passed=3)
    assert pytester.path.joinpath("loads").read_text() == "a\n"


def test_a_test_that_measures_nothing_is_not_parametrized_for_the_engine(suite):
    test = "def test_prompt(prompt, system_sampler):\n    pass\n"
    result = suite(**mine(PARAMETRIZED["engine"], test)).runpytest("--collect-only", "-q")
    assert ids_of(result) == ["first", "second"]


def test_a_load_test_is_parametrized_too(suite):
    test = "def test_prompt(infer_under_load, load_level):\n    infer_under_load(load_level)\n"
    pytester = suite(**mine(PARAMETRIZED["engine"], test))
    result = pytester.runpytest("--collect-only", "-q", "--infer-load", "concurrency=1,2")
    assert ids_of(result) == [f"{name}-concurrency={streams}" for name in "ab" for streams in (1, 2)]


def test_each_engine_has_its_own_table_and_means(suite):
    pytester = suite(**mine(PARAMETRIZED["engine"]))
    lines = pytester.runpytest("--benchmark-autosave", "--infer-rounds=2").outlines
    firsts = [line.split()[0] for line in lines if line.startswith(("a ·", "b ·", "first ", "second ", "mean "))]
    assert firsts == ["a", "first", "second", "mean", "b", "first", "second", "mean"]
    (run,) = pytester.path.rglob("0001_*.json")
    averages = json.loads(run.read_text())["pytest_infer"]["averages"]
    assert [(one["model"]["name"], one["metrics"]["ttft_s"]["prompts"]) for one in averages] == [("a", 2), ("b", 2)]
    quiet = [
        line for line in pytester.runpytest("-q", "--infer-rounds=2").outlines if "2 prompts: " in line or "·" in line
    ]
    assert [line.partition(" ")[0] for line in quiet if " · scripted · " in line] == ["a", "b"]
    assert sum("2 prompts: TTFT" in line for line in quiet) == 2


def test_each_engine_is_compared_with_itself(suite):
    pytester = suite(**mine(PARAMETRIZED["engine"]), virtual=True)
    result = pytester.runpytest("--infer-against=self", "--infer-turns=round", "--infer-rounds=4")
    result.assert_outcomes(passed=4)
    floors = result.stdout.str().partition("noise floor")[2]
    assert all(f"test_prompt[{name}" in floors for name in IDS)


@pytest.mark.parametrize("mark", ["skip(True, reason='slow')", "skip('a', 'b')"])
def test_what_is_wrong_with_a_mark_pytest_says_of_the_test(suite, mark):
    test = f"import pytest\n\n@pytest.mark.{mark}\ndef test_prompt(infer, prompt):\n    infer(prompt)\n"
    result = suite(test=test).runpytest("--infer-rounds=2")
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*TypeError: * maybe you meant pytest.mark.skipif?"])
