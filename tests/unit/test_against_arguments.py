"""What of the parent's command line, environment and import path reaches the child."""

import argparse
import os
import sys
from pathlib import Path

import pytest

from pytest_infer.ab import arguments
from pytest_infer.ab.arguments import moved
from pytest_infer.checkouts.imports import Move, python_path
from pytest_infer.pytest_face import command_line


@pytest.fixture(scope="module")
def options(pytestconfig):
    # Of plugins that may be switched off here, or missing.
    others = argparse.ArgumentParser()
    for name, dest in (("--lf", "lf"), ("--ff", "failedfirst"), ("--nf", "newfirst"), ("--sw", "stepwise")):
        others.add_argument(name, dest=dest, action="store_true")
    for name in ("--reruns", "--reruns-delay", "--only-rerun", "--rerun-except", "--force-reruns"):
        others.add_argument(name)
    others.add_argument("--fail-on-flaky", action="store_true")
    return {**others._option_string_actions, **command_line.parser_of(pytestconfig)._option_string_actions}


@pytest.fixture
def move(tmp_path):
    for name in ("main", "tree"):
        folder = tmp_path / name / "bench"
        folder.mkdir(parents=True)
        folder.joinpath("test_it.py").touch()
    tmp_path.joinpath("main", "model").mkdir()
    return Move(tmp_path / "main", tmp_path / "tree")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("--infer-against=HEAD --infer-rounds=3", "--infer-rounds=3"),
        ("--infer-against HEAD --infer-rounds 3", "--infer-rounds 3"),
        ("--infer-against-sequential --infer-against-python py", ""),
        ("--infer-cold-load --infer-report=r.html --infer-threads=1", "--infer-threads=1"),
        ("--benchmark-autosave --benchmark-save=x --benchmark-save y --benchmark-json z.json", ""),
        ("--benchmark-compare 0001 --benchmark-sort name", "--benchmark-sort name"),
        ("--benchmark-compare --benchmark-sort=name", "--benchmark-sort=name"),
        ("--benchmark-compare-fail min:5% mean:5% -s", "-s"),
        ("--junitxml out.xml --junit-xml=out.xml", ""),
        ("-x --maxfail=2 --maxfail 2 --exitfirst", ""),
        ("--lf --ff --nf --sw --pdb --trace", ""),
        ("-v -q -vv -qq --verbose --verbosity=2", ""),
        ("-xvs", "-s"),
        ("-xk first", "-k first"),
        ("-vkfirst", "-kfirst"),
        ("-n 0 -n0 --dist no", ""),
        ("-k x -m y -p no:anyio -W error -o a=b -rA", "-k x -m y -p no:anyio -W error -o a=b -rA"),
        ("-k --lf", "-k --lf"),
        ("--basetemp=/x --log-file y", ""),
        ("--reruns 2 --only-rerun=a --reruns-delay=1 -s --fail-on-flaky --rerun-except b --force-reruns=3", "-s"),
        ("--unknown value", "--unknown"),
        (f"--unknown {'x' * 300}", "--unknown"),
    ],
)
def test_options_that_are_not_for_the_child_go_with_their_values(options, move, given, kept):
    assert moved(given.split(), options, move, move.checkout, pyargs=False) == kept.split()


def test_paths_are_those_of_the_other_checkout(options, move):
    main, tree = move.checkout, move.worktree

    def given(*args, cwd=main):
        return moved(args, options, move, cwd, pyargs=False)

    assert given("bench") == [f"{tree}/bench"]
    assert given("test_it.py", cwd=main / "bench") == [f"{tree}/bench/test_it.py"]
    assert given(f"{main}/bench/test_it.py::test_prompt[a::b]") == [f"{tree}/bench/test_it.py"]
    assert given("bench/new.py", "bench") == [f"{tree}/bench"]
    assert given("--", "bench") == [f"{tree}/bench"]
    assert given(f"--rootdir={main}", "--confcutdir", f"{main}/bench") == [
        f"--rootdir={tree}",
        "--confcutdir",
        f"{tree}/bench",
    ]
    assert given(f"-c{main}/x") == [f"-c{main}/x"]
    assert given("--infer-prompts=/elsewhere/p.toml") == ["--infer-prompts=/elsewhere/p.toml"]


def test_data_that_is_not_committed_is_shared(options, move):
    main = move.checkout

    def given(*args):
        return moved(args, options, move, main, pyargs=False)

    assert given("--infer-model=model") == [f"--infer-model={main}/model"]
    assert given("--infer-model", f"{main}/model") == ["--infer-model", f"{main}/model"]
    assert given("--infer-model=someone/model") == ["--infer-model=someone/model"]
    assert given(f"--infer-model={'x' * 300}") == [f"--infer-model={'x' * 300}"]
    move.worktree.joinpath("model").mkdir()
    assert given("--infer-model=model") == ["--infer-model=model"]
    # What only looks like a file is left alone.
    assert given("-k", "model") == ["-k", "model"]


def test_paths_through_a_link_are_those_of_the_other_checkout(options, move, tmp_path):
    link, inner = tmp_path / "link", tmp_path / "suite"
    link.symlink_to(move.checkout)
    inner.symlink_to(move.checkout / "bench")
    for side, model in ((move.checkout, "ours"), (move.worktree, "theirs")):
        side.joinpath("current").symlink_to(tmp_path / model)
        tmp_path.joinpath(model).mkdir()
        side.joinpath("bench", "p.toml").touch()
    given = [str(inner / "test_it.py"), f"--infer-prompts={link}/bench/p.toml", "--infer-model", str(link / "current")]
    assert moved(given, options, move, move.checkout, pyargs=False) == [
        str(move.worktree / "bench" / "test_it.py"),
        f"--infer-prompts={move.worktree}/bench/p.toml",
        "--infer-model",
        str(move.worktree / "current"),
    ]


def test_packages_by_name_stay(options, move):
    assert moved(["--pyargs", "bench.tests"], options, move, move.checkout, pyargs=True) == ["--pyargs", "bench.tests"]


def test_a_worktree_inside_the_checkout(tmp_path):
    move = Move(tmp_path, tmp_path / "tmp" / "tree")
    assert move.path(tmp_path / "a") == tmp_path / "tmp" / "tree" / "a"
    assert move.path(move.worktree / "a") == move.worktree / "a"
    same = Move(tmp_path, tmp_path)
    assert same.holds(tmp_path / "a")
    assert same.path(tmp_path / "a") == tmp_path / "a"


def test_the_import_path_is_that_of_the_other_checkout(move, tmp_path):
    main, tree = move.checkout, move.worktree
    venv = Path(sys.prefix) / "lib"
    outside, unnamed = str(tmp_path / "outside"), str(tmp_path / "unnamed")
    entries = ["", str(main / "bench"), outside, str(venv), unnamed, str(main / "src")]
    found = python_path(entries, os.pathsep.join([outside, ""]), main / "src", move)
    assert found == [str(main / "src"), str(tree / "bench"), outside]
    assert python_path(entries, "", venv / "site-packages", move) == [str(tree / "bench"), str(tree / "src")]


def test_the_environment(options, move):
    main = move.checkout
    found = arguments.environment(
        {
            "PYTEST_ADDOPTS": f"--benchmark-autosave --rootdir={main} -k 'a b'",
            "PYTHONPATH": "x",
            "COV_CORE_SOURCE": "y",
            "PYTEST_CURRENT_TEST": "z",
            "HOME": "/h",
        },
        options,
        move,
        main / "bench",
        python_path=["p", "q"],
    )
    assert found == {
        "PYTEST_ADDOPTS": f"--rootdir={move.worktree} -k 'a b'",
        "HOME": "/h",
        "PYTHONPATH": f"p{os.pathsep}q",
        "PWD": f"{move.worktree}/bench",
    }
    assert "PYTHONPATH" not in arguments.environment({"PYTHONPATH": "x"}, options, move, main, python_path=[])


def test_the_files_of_the_variable_are_read_in(options, move):
    given = {"PYTEST_ADDOPTS": "@a.txt"}
    found = arguments.environment(given, options, move, move.checkout, python_path=[], read_in=lambda _: ["-k", "a b"])
    assert found["PYTEST_ADDOPTS"] == "-k 'a b'"


def test_what_is_selected(options):
    assert arguments.selects(["-k", "x", "a", "--infer-rounds", "3", "b::c", "-x"], options) == ["a", "b::c"]
