"""What the end of a run says of the suite's experts."""

import dataclasses
from pathlib import Path

import msgspec
import pytest

from pytest_infer.metrics.result import of_record
from pytest_infer.records import PromptRecord
from pytest_infer.report.show import experts

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def record():
    return msgspec.json.decode(DATA.joinpath("record-1.json").read_bytes(), type=PromptRecord)


def lines(record):
    return [line.plain for line in experts.lines([of_record(record)], width=100, drawn=False)]


def test_the_hottest_and_coldest_beside_chance(record):
    hottest, coldest, chance = lines(record)
    usage = record.profile.experts
    tokens = usage.prefill_tokens + usage.decode_tokens
    assert hottest.startswith("hottest  L")
    assert coldest.startswith("coldest  L")
    assert chance.startswith(f"of {tokens} prompt and generated tokens; an even share is 25 %, a layer's busiest gets ")


def test_a_text_that_two_tests_measured_counts_once(record):
    again = dataclasses.replace(record, nodeid=f"{record.nodeid}[again]")
    other = dataclasses.replace(record, prompt=dataclasses.replace(record.prompt, content_sha256="another"))
    (one, two, both) = (
        [line.plain for line in experts.lines([of_record(each) for each in of], width=100, drawn=False)]
        for of in ([record], [record, again], [record, other])
    )
    assert one == two
    assert both[0] != one[0]


def test_a_batch_of_copies_counts_as_one_of_them(record):
    def of(batch, times):
        usage = record.profile.experts
        more = {name: times * getattr(usage, name) for name in ("prefill_tokens", "decode_tokens")}
        prompt = dataclasses.replace(record.prompt, limits=dataclasses.replace(record.prompt.limits, batch=batch))
        profile = dataclasses.replace(record.profile, experts=dataclasses.replace(usage, **more))
        return of_record(dataclasses.replace(record, prompt=prompt, profile=profile))

    shown = [line.plain for line in experts.lines([of(None, 1), of(8, 8)], width=100)]
    assert shown == lines(record)


def test_prompts_of_a_sweep_of_dtypes_have_one_list(record):
    """Their experts differ in size and in nothing else."""
    usage = record.profile.experts
    halved = tuple(dataclasses.replace(site, expert_bytes=2**20) for site in usage.sites)
    profile = dataclasses.replace(record.profile, experts=dataclasses.replace(usage, sites=halved))
    prompt = dataclasses.replace(record.prompt, content_sha256="another")
    other = dataclasses.replace(record, profile=profile, prompt=prompt)
    shown = [line.plain for line in experts.lines([of_record(record), of_record(other)], width=100)]
    assert f"of {2 * (usage.prefill_tokens + usage.decode_tokens)} prompt and generated tokens" in shown[-1]


def test_layers_of_different_sizes_have_no_common_even_share(record):
    usage = record.profile.experts
    first, *others = usage.sites
    wider = dataclasses.replace(first, k=first.k + 1)
    profile = dataclasses.replace(record.profile, experts=dataclasses.replace(usage, sites=(wider, *others)))
    *_, last = lines(dataclasses.replace(record, profile=profile))
    assert last.endswith("layers differ in their experts; more: pytest-infer experts")
