"""What two measurements must share to be comparable."""

from pathlib import Path

import pytest

from pytest_infer.analysis.compare import fingerprint
from pytest_infer.errors import OptionError
from pytest_infer.storage.runs import Row
from pytest_infer.storage.schema import Machine, Values

PAGE = Path(__file__).parents[2] / "docs" / "comparing.md"
OTHER = {
    "cpu": ({"machine": {"cpu": "Xeon"}}, {"machine": {"cpu": "EPYC"}}),
    "usable_cores": ({"machine": {"usable_cores": 2.0}}, {"machine": {"usable_cores": 1.5}}),
    "memory": ({"machine": {"memory_bytes": 2**34}}, {"machine": {"memory_bytes": 2**35}}),
    "memory_limit": ({"machine": {"memory_limit_bytes": 2**31}}, {"machine": {"memory_limit_bytes": 2**32}}),
    "system": ({"machine": {"system": "Linux"}}, {"machine": {"system": "Darwin"}}),
    "architecture": ({"machine": {"architecture": "x86_64"}}, {"machine": {"architecture": "aarch64"}}),
    "kernel": ({"machine": {"kernel": "6.1.2"}}, {"machine": {"kernel": "6.10.2"}}),
    "virtualization": ({"machine": {"virtualization": "kvm"}}, {"machine": {"virtualization": "docker"}}),
    "governor": ({"machine": {"governor": "performance"}}, {"machine": {"governor": "powersave"}}),
    "huge_pages": ({"machine": {"huge_pages": "always"}}, {"machine": {"huge_pages": "never"}}),
    **{
        name: ({"machine": {"scheduling": {name: before}}}, {"machine": {"scheduling": {name: after}}})
        for name, before, after in (
            ("nice", "0", "10"),
            ("policy", "other", "batch"),
            ("cpu_weight", "100", "20"),
            ("cpu_shares", "1024", "512"),
            ("memory_nodes", "0-1", "1"),
            ("memory_policy", "default", "bind:1"),
            ("turbo", "on", "off"),
            ("energy_preference", "performance", "power"),
        )
    },
    "accelerators": ({"machine": {"accelerators": []}}, {"machine": {"accelerators": ["H100"]}}),
    **{
        name: tuple({"machine": {"card_settings": {name: value}}, "model": {"device": "cuda:0"}} for value in values)
        for name, *values in (
            ("driver", "580.159", "590.1"),
            ("power_limit", "700 W", "500 W"),
            ("card_clocks", "1980 and 2619 MHz", "1410 and 2619 MHz"),
            ("ecc", "on", "off"),
        )
    },
    "python": ({"machine": {"python": "3.12.3"}}, {"machine": {"python": "3.13.0"}}),
    "torch": ({"model": {"versions": {"torch": "2.9"}}}, {"model": {"versions": {"torch": "2.10"}}}),
    "transformers": (
        {"model": {"versions": {"transformers": "5.0"}}},
        {"model": {"versions": {"transformers": "5.1"}}},
    ),
    "xllamacpp": ({"model": {"versions": {"xllamacpp": "1"}}}, {"model": {"versions": {"xllamacpp": "2"}}}),
    "environment": ({"machine": {"environment": {}}}, {"machine": {"environment": {"OMP_NUM_THREADS": "1"}}}),
    "instrumented": ({"machine": {"instrumented": []}}, {"machine": {"instrumented": ["tracemalloc"]}}),
    "engine": ({"model": {"engine": "scripted"}}, {"model": {"engine": "transformers"}}),
    "threads": ({"model": {"threads": 1}}, {"model": {"threads": 2}}),
    "ranks": ({}, {"ranks": {"size": 2, "memory": []}}),
    "attention": ({"model": {"attention": "sdpa"}}, {"model": {"attention": "eager"}}),
    "experts_implementation": (
        {"model": {"experts_implementation": "eager"}},
        {"model": {"experts_implementation": "grouped_mm"}},
    ),
    "engine_args": ({"model": {}}, {"model": {"engine_args": "-ctk q8_0"}}),
    "remote_code": ({"model": {}}, {"model": {"remote_code": "owner.name.0a1b.modeling"}}),
    "weights": ({"model": {"weights_sha256": "a" * 64}}, {"model": {"weights_sha256": "b" * 64}}),
    "served_model": tuple(
        {
            "model": {
                **dict.fromkeys(("weights_sha256", "parameters", "parameter_bytes", "dtype")),
                "generation": {"prompt_cache": "bust"},
                "name": name,
            }
        }
        for name in ("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-14B")
    ),
    "parameters": ({"model": {"parameters": 25}}, {"model": {"parameters": 26}}),
    "parameter_bytes": ({"model": {"parameter_bytes": 100}}, {"model": {"parameter_bytes": 50}}),
    "dtype": ({"model": {"dtype": "float32"}}, {"model": {"dtype": "bfloat16"}}),
    "quantization": ({"model": {}}, {"model": {"quantization": "int8"}}),
    "device": ({"model": {"device": "cpu"}}, {"model": {"device": "cuda:0"}}),
    "prompt": ({"prompt": {"content_sha256": "a" * 64}}, {"prompt": {"content_sha256": "b" * 64}}),
    "prompt_tokens": ({"prompt_tokens": 6}, {"prompt_tokens": 7}),
    "limits": ({"prompt": {"limits": {"max_new_tokens": 8}}}, {"prompt": {"limits": {"max_new_tokens": 9}}}),
    "generation": ({"model": {"generation": {"seed": 0}}}, {"model": {"generation": {"seed": 1}}}),
    "output": ({"output_sha256": "a" * 64}, {"output_sha256": "b" * 64}),
}


@pytest.mark.parametrize("known", ["weights_sha256", "parameters"])
def test_a_name_says_nothing_where_the_weights_do(make_row, known):
    before, after = OTHER["served_model"]
    told = {"weights_sha256": "a" * 64, "parameters": 25}[known]
    rows = [make_row(model=one["model"] | {known: told}) for one in (before, after)]
    assert fingerprint.differences(*rows) == ()
    # Nor where one side alone tells of them.
    assert fingerprint.differences(make_row(**before), rows[1]) == ()


@pytest.mark.parametrize("short", ["Qwen2.5-7B", "Qwen/Qwen2.5-7B"])
def test_a_served_model_is_the_same_without_its_owner(make_row, short):
    before = OTHER["served_model"][0]
    rows = [make_row(model=before["model"] | {"name": name}) for name in (short, "Qwen/Qwen2.5-7B")]
    assert fingerprint.differences(*rows) == fingerprint.differences(*rows[::-1]) == ()


def test_a_served_model_of_another_owner_is_another(make_row):
    before = OTHER["served_model"][0]
    rows = [make_row(model=before["model"] | {"name": name}) for name in ("a/Qwen2.5-7B", "b/Qwen2.5-7B")]
    assert [one.key for one in fingerprint.differences(*rows)] == ["served_model"]


def test_the_state_of_cards_counts_where_llama_cpp_is_on_one(make_row):
    rows = [
        make_row(machine={"card_settings": {"power_limit": watts}}, model={"device": "CUDA0"})
        for watts in ("700 W", "500 W")
    ]
    assert [str(one) for one in fingerprint.differences(*rows)] == ["power_limit 700 W → 500 W"]


def test_every_fact_is_tested():
    assert list(OTHER) == [fact.key for fact in fingerprint.FACTS]


@pytest.mark.parametrize("key", OTHER)
def test_each_fact_makes_a_difference_of_its_own(make_row, key):
    before, after = (make_row(**changes) for changes in OTHER[key])
    (difference,) = fingerprint.differences(before, after)
    assert difference.key == key
    assert str(difference).startswith(f"{key} ")
    assert " → " in str(difference)
    assert difference.before != difference.after
    assert fingerprint.differences(before, before) == ()


@pytest.mark.parametrize("key", OTHER)
def test_a_difference_is_accepted_by_its_key_or_its_kind_only(make_row, key):
    before, after = (make_row(**changes) for changes in OTHER[key])
    kind = next(fact.kind for fact in fingerprint.FACTS if fact.key == key)
    assert fingerprint.differences(before, after, [key]) == ()
    assert fingerprint.differences(before, after, [kind]) == ()
    others = {name for name in (*fingerprint.KINDS, *OTHER) if name not in (key, kind)}
    assert fingerprint.differences(before, after, others) != ()


@pytest.mark.parametrize("key", OTHER)
def test_what_one_side_does_not_know_is_no_difference(make_row, key):
    before, after = (make_row(**changes) for changes in OTHER[key])
    bare = Row(test="t", name="t", metrics={})
    for row in (before, after):
        assert fingerprint.differences(bare, row) == fingerprint.differences(row, bare) == ()


def test_plain_rows_are_not_held_against_anything(make_row):
    metrics = {"output_sha256": Values(value="c" * 64)}
    plain = Row(test="t", name="t", metrics=metrics, machine=Machine(cpu="Z80"), plain=True)
    assert fingerprint.differences(plain, make_row()) == fingerprint.differences(make_row(), plain) == ()


def test_what_does_not_matter_is_no_difference(make_row):
    before = make_row(machine={"memory_bytes": 16 * 2**30, "kernel": "6.1.5-cloud"}, model={"load_s": 1.0}, ttft_s=0.1)
    after = make_row(
        "renamed",
        prompt={"content_sha256": "a" * 64},
        machine={"memory_bytes": 16 * 2**30 - 2**24, "kernel": "6.1.9"},
        model={"load_s": 2.0, "name": "x"},
        ttft_s=9.0,
    )
    assert fingerprint.differences(before, after) == ()


def test_the_order_of_a_table_is_no_difference(make_row):
    before = make_row(model={"generation": {"seed": 0, "top_k": 5}})
    after = make_row(model={"generation": {"top_k": 5, "seed": 0}})
    assert fingerprint.differences(before, after) == ()


def test_differences_read_well(make_row):
    before = make_row(output_sha256="a1b2" * 16, machine={"usable_cores": 2.0})
    after = make_row(output_sha256="c3d4" * 16, machine={"usable_cores": 1.5})
    assert [str(d) for d in fingerprint.differences(before, after)] == [
        "usable_cores 2 → 1.5",
        "output a1b2a1b2 → c3d4c3d4",
    ]


def test_several_differences_keep_the_table_order(make_row):
    before = make_row(model={"threads": 1}, machine={"cpu": "a"})
    after = make_row(model={"threads": 2}, machine={"cpu": "b"})
    assert [d.key for d in fingerprint.differences(before, after)] == ["cpu", "threads"]
    assert [d.key for d in fingerprint.differences(before, after, ["machine"])] == ["threads"]


def test_names_to_allow():
    fingerprint.check_allowed(["cpu", "machine", "software", "model", "workload", "output"])
    with pytest.raises(OptionError, match=r"--allow-different: unknown key 'colour'; known: .*cpu.*machine"):
        fingerprint.check_allowed(["cpu", "colour"])


@pytest.mark.skipif(not PAGE.exists(), reason="the wheel is tested without docs/")
def test_the_page_lists_all_names_to_allow():
    keys = {kind: [fact.key for fact in fingerprint.FACTS if fact.kind == kind] for kind in fingerprint.KINDS}
    rows = "".join(f"| `{kind}` | {', '.join(f'`{key}`' for key in keys[kind])} |\n" for kind in keys)
    shown = PAGE.read_text(encoding="utf-8").partition("<!-- facts:begin -->\n")[2].partition("<!-- facts:end -->")[0]
    assert shown == f"| all of | single keys |\n|---|---|\n{rows}"


def test_what_the_system_grants_must_be_equal_as_far_as_both_know_it(make_row):
    def row(**granted):
        return make_row(machine={"scheduling": granted})

    def differ(before, after):
        return [str(found) for found in fingerprint.differences(before, after)]

    assert differ(row(nice="0"), row(nice="10")) == ["nice 0 → 10"]
    assert differ(row(cpu_weight="100", memory_policy="default"), row(cpu_weight="20", memory_policy="bind:1")) == [
        "cpu_weight 100 → 20",
        "memory_policy default → bind:1",
    ]
    assert differ(row(nice="0"), row(nice="0", turbo="on")) == []
    assert differ(make_row(), row(nice="10")) == []
    assert differ(make_row(machine={"environment": {}}), make_row(machine={"environment": {"LD_PRELOAD": "x.so"}})) == [
        "environment none → LD_PRELOAD=x.so"
    ]


def test_weights_that_are_stored_quantised_are_told_apart_by_hash_and_bytes(make_row):
    same = {"engine": "transformers", "weights_sha256": "a" * 64, "parameter_bytes": 100}
    older = make_row(model={**same, "parameters": 7})
    newer = make_row(model={**same, "parameters": 56, "quantization": "gptq"})
    assert fingerprint.differences(older, newer) == ()
    other = make_row(model={**same, "parameters": 56, "weights_sha256": "b" * 64, "parameter_bytes": 200})
    assert [d.key for d in fingerprint.differences(newer, other)] == ["weights", "parameter_bytes"]
    quantised_here = make_row(model={**same, "parameters": 7, "quantization": "int8"})
    assert [d.key for d in fingerprint.differences(older, quantised_here)] == ["quantization"]


def test_a_cards_state_is_nothing_to_a_model_on_the_cpu(make_row):
    before, after = (
        make_row(machine={"card_settings": {"driver": driver}}, model={"device": "cpu"}) for driver in ("580", "590")
    )
    assert fingerprint.differences(before, after) == ()
