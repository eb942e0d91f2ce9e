"""Averages over the prompts of a suite."""

import statistics
from dataclasses import replace

import msgspec
import pytest

from pytest_infer.analysis.suite import OneTest, averages, of_tests
from pytest_infer.metrics import Summary
from pytest_infer.records import Average, ModelInfo, SuiteAverages
from pytest_infer.storage.block import of_suite


def row(**values):
    return {key: Summary(value=value) for key, value in values.items()}


def test_mean_and_sample_standard_deviation():
    found = averages([row(a=1.0), row(a=2), row(a=6.0)], ["a"])["a"]
    assert found.mean == 3.0
    assert found.stdev == pytest.approx(statistics.stdev([1, 2, 6]))
    assert found.stdev == pytest.approx(7**0.5)  # by hand: (4 + 1 + 9) / 2
    assert found.prompts == 3


def test_one_prompt_has_no_spread():
    found = averages([row(a=4)], ["a"])["a"]
    assert (found.mean, found.stdev, found.prompts) == (4.0, None, 1)


def test_prompts_without_the_metric_do_not_count():
    found = averages([row(a=4), row(a=None), row(a=8)], ["a"])["a"]
    assert (found.mean, found.prompts) == (6.0, 2)


def test_a_metric_that_no_prompt_has_is_left_out():
    assert averages([row(a=None, b="text", c=1)], ["a", "b", "c"]).keys() == {"c"}
    assert averages([], ["a"]) == {}


def test_zero_counts():
    assert averages([row(a=0), row(a=2)], ["a"])["a"].mean == 1.0


def test_only_the_keys_asked_for():
    assert list(averages([row(a=1, b=2)], ["b"])) == ["b"]


def test_the_suite_may_be_read_once_only():
    found = averages(iter([row(a=1, b=10), row(a=3, b=30)]), ["a", "b"])
    assert (found["a"].mean, found["b"].mean) == (2.0, 20.0)


MODEL = ModelInfo(name="a", engine="transformers", dtype="float32", device="cpu", threads=2)


def one(config=None, against=None, model=MODEL, **values):
    return OneTest(config=config or {}, model=model, figures=row(**values), against=row(**(against or {})))


def test_each_configuration_has_its_own_averages():
    tests = [one({"threads": "1"}, ttft_s=1.0), one({"threads": "2"}, ttft_s=5.0), one({"threads": "1"}, ttft_s=3.0)]
    first, second = of_tests(tests)
    assert (first.config, second.config) == ({"threads": "1"}, {"threads": "2"})
    assert first.metrics == {"ttft_s": Average(mean=2.0, stdev=2**0.5, prompts=2)}
    assert second.metrics == {"ttft_s": Average(mean=5.0, prompts=1)}


@pytest.mark.parametrize(
    "other",
    [
        {"name": "b"},
        {"engine": "mine"},
        {"dtype": "bfloat16"},
        {"device": "cuda:0"},
        {"threads": 4},
        {"quantization": "int8"},
        {"attention": "eager"},
        {"weights_sha256": "1a2b"},
    ],
    ids=str,
)
def test_each_model_has_its_own_averages(other):
    tests = [one(ttft_s=1.0), one(ttft_s=5.0, model=replace(MODEL, **other)), one(ttft_s=3.0)]
    first, second = of_tests(tests)
    told = {"name": "a", "engine": "transformers", "dtype": "float32", "device": "cpu", "threads": 2}
    assert (first.model, second.model) == (told, told | other)
    assert first.metrics == {"ttft_s": Average(mean=2.0, stdev=2**0.5, prompts=2)}
    assert second.metrics == {"ttft_s": Average(mean=5.0, prompts=1)}


def test_what_the_load_took_makes_no_other_model():
    assert len(of_tests([one(ttft_s=1.0), one(ttft_s=2.0, model=replace(MODEL, load_s=3.0))])) == 1


def test_every_metric_that_is_a_number_and_no_other():
    (found,) = of_tests([one(ttft_s=1.0, output_sha256="text", peak_rss_bytes=7, swap_bytes=None)])
    assert found.metrics.keys() == {"ttft_s", "peak_rss_bytes"}


def test_the_other_side_counts_the_prompts_that_it_has():
    (found,) = of_tests([one(ttft_s=1.0, against={"ttft_s": 4}), one(ttft_s=3.0)])
    assert (found.metrics["ttft_s"].prompts, found.against) == (2, {"ttft_s": Average(mean=4.0, prompts=1)})


def test_what_is_stored_is_read_back():
    found = of_tests([one({"a": "b"}, ttft_s=1.0, against={"ttft_s": 2.0}), one(ttft_s=3.0), one(ttft_s=4.0)])
    stored = of_suite(found)
    assert "stdev" not in stored[0]["metrics"]["ttft_s"]
    assert "config" not in stored[1]
    assert msgspec.convert(stored, tuple[SuiteAverages, ...]) == found
