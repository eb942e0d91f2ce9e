"""The axes of sweeps: how a configuration is written in ids, for people, and as options."""

import re
from pathlib import Path

import pytest

from pytest_infer.analysis.sweep import axes
from pytest_infer.analysis.sweep.axes import AXES
from pytest_infer.engines import models
from pytest_infer.pytest_face import options
from pytest_infer.pytest_face.options import OPTIONS

PAGE = Path(__file__).parents[2] / "docs" / "sweeps.md"


def test_each_axis_stands_for_an_option_that_exists():
    known = {option.command_line: option for option in OPTIONS}
    for axis in AXES.values():
        assert axis.option in known
        assert known[axis.option].flag is (axis.flag is not None)


@pytest.mark.skipif(not PAGE.exists(), reason="the wheel is tested without docs/")
def test_the_page_names_each_axis_and_its_option_for_one_run():
    rows = re.findall(
        r"^\| `([\w-]+)` \|.*\| (yes|no) \| `(--infer-[\w-]+)` \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert rows == [(axis.name, "yes" if axis.reload else "no", axis.option) for axis in AXES.values()]


def test_the_help_names_the_axes_and_models_that_there_are():
    assert tuple(AXES) == options.SWEEP_AXES
    assert tuple(models.BUNDLED) == options.BUNDLED_MODELS
    assert options.DEFAULT_MODEL == models.DEFAULT


@pytest.mark.parametrize(
    ("config", "written"),
    [
        ({"threads": "2", "dtype": "bfloat16"}, "--infer-threads 2 --infer-dtype bfloat16"),
        ({"cache": "off", "compile": "off"}, "--infer-no-cache"),
        ({"cache": "on", "compile": "on"}, "--infer-compile"),
        ({"experts": "eager", "batch": "8"}, "--infer-experts-implementation eager --infer-batch 8"),
        ({"model": "a model; rm -rf"}, "--infer-model 'a model; rm -rf'"),
        ({"engine-args": "--no-mmap"}, "--infer-engine-args=--no-mmap"),
        ({"serve-flags": "-fa on"}, "--infer-serve-flags='-fa on'"),
        ({"of a later version": "1"}, ""),
    ],
)  # fmt: skip
def test_the_options_of_a_configuration(config, written):
    assert axes.options(config) == written


def test_a_configuration_in_an_id_and_for_people():
    config = {"threads": "2", "dtype": "bfloat16"}
    assert axes.id_of(config) == "threads=2-dtype=bfloat16"
    assert axes.label(config) == "threads=2 dtype=bfloat16"


def test_what_is_asked_and_how_it_runs_are_told_apart():
    config = {"threads": "2", "prompt-tokens": "16", "max-new-tokens": "8"}
    assert axes.choices(config) == {"threads": "2"}
    assert axes.workload(config) == {"prompt-tokens": "16", "max-new-tokens": "8"}


@pytest.mark.parametrize(
    ("test", "rest"),
    [
        ("bench/t.py::t[chat-threads=2]", "bench/t.py::t[chat]"),
        ("bench/t.py::t[threads=2-chat]", "bench/t.py::t[-chat]"),
        ("threads=2/t.py::t[chat-threads=2]", "threads=2/t.py::t[chat]"),
        ("bench/t.py::t[threads=2-threads=2]", "bench/t.py::t[threads=2]"),
        ("threads=2/t.py::t[chat]", "threads=2/t.py::t[chat]"),
        ("bench/t.py::t", "bench/t.py::t"),
    ],
)
def test_a_tests_id_without_its_configuration_keeps_all_else(test, rest):
    assert axes.without(test, {"threads": "2"}) == rest
    assert axes.without(test, {}) == test
