"""`pytest-infer experts` as a person runs it: what it prints, against goldens that were looked at, and how it ends."""

import csv
import io
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len
from typer.testing import CliRunner

from pytest_infer.analysis.experts import recorded
from pytest_infer.cli.main import app
from pytest_infer.measure.experts import dumps
from pytest_infer.storage import history

DATA = Path(__file__).parents[1] / "data"
KEPT = ("prompt_tokens", "output_sha256")


def planted(tokens, k, experts, layer, tilt):
    """Return counts that add up to tokens x k, hot where `layer` and `tilt` say, the same every time."""
    weights = [1 / (4 + (n * 37 + layer * 11 + tilt * 5) % experts) for n in range(experts)]
    counts = [min(tokens, int(tokens * k * w / sum(weights))) for w in weights]
    for n in range(tokens * k - sum(counts)):
        counts[n % experts] += 1
    return counts


def usage(prefill, decode, *, layers=4, experts=8, k=2, tilt=0, **more):
    sites = [
        {
            "name": f"model.layers.{n}.mlp.experts",
            "layer": n,
            "kind": "mlp",
            "experts": experts,
            "slots": experts,
            "k": k,
            "expert_bytes": 2**20,
        }
        for n in range(layers)
    ]
    counts = {
        phase: [planted(tokens, k, experts, n, tilt) for n in range(layers)]
        for phase, tokens in (("prefill", prefill), ("decode", decode))
    }
    return {
        "check": "passed",
        "tokens": {"prefill": prefill, "decode": decode},
        "sites": sites,
        "counts": counts,
        **more,
    }


PROMPTS = {
    "guide": (["short"], "text", 0),
    "code one": (["code"], "code", 3),
    "code two": (["code", "short"], "code", 3),
    "dialogue": (["chat"], "text", 1),
}


@pytest.fixture
def add(storage, make_block):
    """Return a function that stores a run of prompts with such usage."""

    def run(*, prompts=PROMPTS, prefill=40, decode=120, model=None, **shape):
        return storage.add(
            [
                make_block(
                    name,
                    prompt={"tags": tags, "group": group},
                    only=KEPT,
                    model=model,
                    experts=usage(prefill, decode, tilt=tilt, **shape),
                )
                for name, (tags, group, tilt) in prompts.items()
            ]
        )

    return run


@pytest.fixture
def infer(storage, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments):
        result = CliRunner().invoke(app, ["experts", *arguments, f"--storage={storage.folder}"])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run


def test_a_full_disk_keeps_the_earlier_census(add, infer, tmp_path, full_disk):
    add()
    census = tmp_path / "census.json"
    census.write_text("the earlier one")
    with full_disk():
        result = infer("export", "latest", str(census))
    assert (result.exit_code, result.stderr) == (2, f"pytest-infer: {census}: File too large\n")
    assert census.read_text() == "the earlier one"


def test_a_layer_with_several_sets_of_experts_is_one_layer(storage, make_block, infer, tmp_path):
    used = usage(4, 4)
    for n, site in enumerate(used["sites"]):
        site.update(layer=n // 2)
    storage.add([make_block("a", only=KEPT, experts=used)])
    said = infer().stdout
    assert "4 MoE sites (2 layers) × 8 experts, top 2" in said
    assert "too few tokens to name hot experts in 4 of 4 MoE sites (2 layers)" in said
    wrote = infer("export", "latest", str(tmp_path / "census.json")).stdout
    assert ", 4 MoE sites (2 layers) of 8 experts, " in wrote


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="no names of open files here")
def test_a_census_on_stdout_is_alone_there(add, infer, capfd):
    add()
    result = infer("export", "latest", "/dev/stdout")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.startswith("wrote /dev/stdout: 4 prompts")
    assert [one["name"] for one in json.loads(capfd.readouterr().out)["prompts"]] == [*PROMPTS]


@pytest.mark.parametrize("name", ["census.json", "counts.pt"])
def test_a_census_that_cannot_be_written_is_one_line(add, infer, tmp_path, monkeypatch, name):
    monkeypatch.setattr(dumps, "content", lambda counts: counts.tobytes())
    add()
    tmp_path.joinpath("no").touch()
    result = infer("export", "latest", str(tmp_path / "no" / name))
    assert result.exit_code == 2
    assert result.stderr.endswith(f"{name}: Not a directory\n")


GOLDENS = {
    "experts": ({}, ("--top=4",)),
    "experts-by-tag": ({}, ("--by=tag", "--phase=prefill", "--top=2")),
    "experts-many": ({"layers": 6, "experts": 256, "k": 8}, ("--by=group", "--phase=both", "--top=3")),
}


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("golden", GOLDENS)
def test_terminal(add, infer, golden, width, monkeypatch):
    shape, arguments = GOLDENS[golden]
    add(**shape)
    monkeypatch.setenv("COLUMNS", str(width))
    result = infer("latest", *arguments)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line for line in lines if cell_len(line) > width] == []
    assert [line for line in lines if re.search(r"\s$", line)] == []
    assert "\x1b" not in result.stdout
    path = DATA / f"{golden}-{width}.txt"
    if os.environ.get("UPDATE_GOLDENS"):
        path.write_text(result.stdout, encoding="utf-8")
    assert result.stdout == path.read_text(encoding="utf-8")


def test_the_list_counts_all_prompts_and_only_their_phase(add, infer):
    add()
    for phase, each in (("decode", 120), ("prefill", 40)):
        found = json.loads(infer("1", f"--phase={phase}", "--format=json").stdout)
        assert [layer["selections"] for layer in found["layers"]] == [4 * each * 2] * 4
        expected = sum(planted(each, 2, 8, 2, tilt)[5] for _, _, tilt in PROMPTS.values())
        (row,) = [r for r in found["experts"] if (r["layer"], r["expert"]) == (2, 5)]
        assert row["times"] == row[phase] == expected
        assert row["share"] == pytest.approx(expected / (4 * each * 2))
        assert row["low"] < row["share"] < row["high"]
    both = json.loads(infer("1", "--phase=both", "--format=json").stdout)
    assert all(r["times"] == r["prefill"] + r["decode"] for r in both["experts"])
    assert [r["ratio"] for r in both["experts"]] == sorted((r["ratio"] for r in both["experts"]), reverse=True)


def test_every_figure_of_skew_has_its_null(add, infer):
    add()
    for layer in json.loads(infer("--format=json").stdout)["layers"]:
        assert set(layer["figures"]) == set(layer["null"])
        assert all(n["low"] <= n["mean"] <= n["high"] for n in layer["null"].values())


def test_the_overlap_by_group_and_its_differences(add, infer):
    add()
    found = json.loads(infer("--by=group", "--format=json").stdout)
    assert (found["overlap"]["by"], found["overlap"]["names"]) == ("group", ["text", "code"])
    # Both code prompts have the same use: the one serves the other as it serves itself.
    assert found["overlap"]["matrix"][1][1] == pytest.approx(found["overlap"]["itself"][1])
    (difference,) = found["differences"]
    assert (difference["first"], difference["second"], difference["by"]) == ("text", "code", "tokens")
    assert difference["differs"]
    assert json.loads(infer("--by=prompt", "--format=json").stdout)["differences"] == []


def test_only_some_tests(add, infer):
    add()
    found = json.loads(infer("-k", "code", "--format=json").stdout)
    assert found["prompts"] == ["code one", "code two"]


def test_as_csv(add, infer):
    add()
    rows = list(csv.DictReader(io.StringIO(infer("--format=csv").stdout)))
    assert len(rows) == 4 * 8
    assert sum(int(row["decode"]) for row in rows) == 4 * 4 * 120 * 2
    assert {row["site"] for row in rows} == {f"model.layers.{n}.mlp.experts" for n in range(4)}


def test_as_markdown(add, infer):
    add(prompts={"a|b <i>": (["x"], None, 0), "two": ([], None, 1)})
    lines = infer("--format=markdown", "--top=2").stdout.splitlines()
    assert "| hottest | times | percent | 95 % interval | × fair | |" in lines
    assert "| hot quarter of, % served of | a\\|b &lt;i&gt; | two |" in lines
    assert len([line for line in lines if line.startswith("| L")]) == 2 + 2 + 4


def test_names_cannot_write_to_the_terminal(add, infer):
    add(prompts={"a\x1b[31m\nb": (["t\x07"], None, 0), "c": (["[red]u[/red]"], None, 2)})
    for arguments in ((), ("--by=tag",), ("--format=markdown", "--by=tag")):
        text = infer(*arguments).stdout
        assert "\x1b" not in text
        assert "\x07" not in text
    assert "[red]u[/red]" in infer("--by=tag").stdout


def test_too_few_tokens_say_how_many_more(add, infer):
    add(prompts={"guide": PROMPTS["guide"]}, decode=6)
    text = " ".join(infer().stdout.split())
    found = re.search(r"! too few tokens to name hot experts in 4 of 4 layers; at least ([\d,]+) more would do", text)
    assert found
    assert int(found.group(1).replace(",", "")) > 1
    assert " hot" not in infer("--top=3").stdout.split("coldest")[0].split("fair", 1)[1]


def test_a_trace_adds_reuse_and_pairs(add, infer):
    path = add(prompts={"guide": PROMPTS["guide"]}, prefill=4, decode=30, layers=1, trace=True)
    test = "bench/t.py::t[guide]"
    # Four prompt tokens with 6 and 7; then in turns 0 with 1 and 2 with 3: nothing is used twice in a row.
    trace = np.array([[6, 7]] * 4 + [[0, 1], [2, 3]] * 15, dtype=np.uint8)
    np.savez_compressed(path.with_suffix(".npz"), **{f"{test}|experts|model.layers.0.mlp.experts": trace})
    found = json.loads(infer("--format=json").stdout)
    assert found["layers"][0]["reuse"]["measured"] == 0
    assert found["layers"][0]["reuse"]["chance"] == pytest.approx(0.5)
    assert [(p["first"], p["second"], p["times"]) for p in found["together"]] == [(0, 1, 15), (2, 3, 15)]
    text = infer().stdout
    assert "reuse %" in text
    assert "L0 E0+E1" in text


@pytest.mark.parametrize("damage", [b"", b"PK nothing"])
def test_a_damaged_sidecar_is_one_line(add, infer, damage):
    path = add(prompts={"guide": PROMPTS["guide"]}, trace=True)
    path.with_suffix(".npz").write_bytes(damage)
    result = infer()
    assert result.exit_code == 2
    assert re.fullmatch(r"pytest-infer: .*0001_cccccccc_x\.npz cannot be read: .*\n", result.stderr)


def test_a_trace_without_its_sidecar_has_no_reuse(add, infer):
    add(prompts={"guide": PROMPTS["guide"]}, trace=True)
    assert infer().exit_code == 0
    assert "reuse" not in infer().stdout


def test_gate_weights_are_averaged(add, infer):
    ones = [[0.25 * n for n in planted(120, 2, 8, layer, 0)] for layer in range(4)]
    weights = {"prefill": [[0.0] * 8] * 4, "decode": ones}
    add(prompts={"guide": PROMPTS["guide"]}, weights=weights)
    found = json.loads(infer("--format=json").stdout)
    assert {row["gate"] for row in found["experts"] if row["times"]} == {0.25}
    assert "gate" in infer().stdout.splitlines()[3]


# when there is nothing to show


def test_why_nothing_was_recorded(storage, make_block, infer):
    storage.add([make_block("guide", only=KEPT, experts={"absent": "no MoE layers: the model is \x1b[1m dense"})])
    result = infer()
    assert result.exit_code == 11
    assert result.stderr == (
        "pytest-infer: no expert usage in run 0001 cccccccc (main): no MoE layers: the model is \\x1b[1m dense\n"
    )


def test_selections_that_do_not_add_up_are_left_out(storage, make_block, infer):
    wrong = {**usage(4, 5), "check": "layers.3: 19, not 20"}
    good = make_block("good", only=KEPT, experts=usage(4, 50))
    storage.add([make_block("bad", only=KEPT, experts=wrong), good])
    result = infer("--format=json")
    assert result.exit_code == 0
    assert result.stderr == "pytest-infer: left out: bench/t.py::t[bad]: layers.3: 19, not 20\n"
    assert json.loads(result.stdout)["prompts"] == ["good"]
    storage.add([make_block("bad", only=KEPT, experts=wrong)])
    result = infer()
    assert result.exit_code == 11
    assert "no expert usage in run 0002 cccccccc (main): selections do not add up (layers.3: 19" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("9",), "no run '9' among the 1 in "),
        (("-k", "nothing"), "has no test whose name holds 'nothing'"),
        (("--by=tag",), "no prompt of run 0001 cccccccc (main) has a tag"),
        (("--phase=decode",), "has no decode tokens; try --phase prefill"),
        (("--phase=nonsense",), "nonsense"),
    ],
)
def test_what_cannot_be_shown_is_one_line(add, infer, arguments, said):
    add(prompts={"one": ([], None, 0)}, decode=0 if arguments == ("--phase=decode",) else 5)
    result = infer(*arguments)
    assert result.exit_code in (2, 11)
    assert result.stdout == ""
    assert said in result.stderr


def test_several_models_must_be_chosen_from(storage, make_block, infer):
    storage.add(
        [
            make_block("a", only=KEPT, model={"name": "one"}, experts=usage(4, 5)),
            make_block("b", only=KEPT, model={"name": "two"}, experts=usage(4, 5)),
        ]
    )
    result = infer()
    assert result.exit_code == 2
    assert "holds expert usage of several models (one, two); choose tests with -k" in result.stderr
    assert infer("-k", "[b]").exit_code == 0


def test_models_of_one_name_are_told_apart_by_what_differs(storage, make_block, infer):
    models = [{"name": "toy", "weights_sha256": letter * 64} for letter in "ab"]
    storage.add([make_block(f"p{n}", model=one, experts=usage(4, 5)) for n, one in enumerate(models)])
    assert "several models (toy weights aaaaaaaa, toy weights bbbbbbbb); choose" in " ".join(infer().stderr.split())


def rows_of(*blocks):
    """Return rows of tests that have other names than their prompts."""
    return [
        {"name": f"t{n}", "fullname": f"t.py::t{n}", "stats": {"median": 1.0}, "extra_info": {"pytest_infer": block}}
        for n, block in enumerate(blocks)
    ]


def test_several_prompts_of_one_name_are_told_apart(storage, make_block, infer):
    texts = [{"content_sha256": f"{n:064}"} for n in range(2)]
    storage.add(rows_of(*(make_block("guide", prompt=text, only=KEPT, experts=usage(4, 50)) for text in texts)))
    assert json.loads(infer("--format=json").stdout)["prompts"] == ["t0", "t1"]


def test_a_prompt_that_several_tests_measured_counts_once(storage, make_block, infer):
    once = [make_block("code", only=KEPT, experts=usage(4, 30)), make_block("guide", only=KEPT, experts=usage(4, 50))]
    storage.add(rows_of(*once))
    # A sweep of threads: the same text three times, once cut short.
    short = make_block("guide", only=KEPT, experts=usage(4, 20))
    storage.add(rows_of(short, *once, once[1]))
    for options in (("--format=json",), ("--format=markdown", "--by=prompt"), ()):
        alone, copied = infer("1", *options), infer("2", *options)
        assert re.sub("0002(?=.cccc)", "0001", copied.stdout) == alone.stdout
        assert alone.stderr == ""
        assert copied.stderr == "pytest-infer: left out: 2 tests of a prompt that another test measured as well\n"
    census = infer("export", "2", str(storage.folder / "census.json"))
    assert "2 prompts, 8 + 80 tokens" in census.stdout


def test_a_batch_of_copies_is_no_more_than_one_of_them(storage, make_block):
    def block(batch, times, *tags, **more):
        prompt = {"limits": {"max_new_tokens": 64, "batch": batch}, "tags": tags}
        return make_block("code", prompt=prompt, only=KEPT, experts=usage(times * 4, times * 30, **more))

    storage.add(rows_of(block(8, 8), block(2, 2), block(None, 1), block(None, 1, "traced", trace=True)))
    (found,) = recorded.prompts_of(run := history.load(storage.folder).select("1"), run.rows)
    assert found.tags == ("traced",)
    assert found.census.decode_tokens == 30


def test_a_run_of_pytest_benchmark_alone_says_so(storage, infer):
    storage.add([{"name": "t", "fullname": "t.py::t", "stats": {"median": 1.0}}])
    result = infer()
    assert result.exit_code == 11
    assert "it is pytest-benchmark's own, not measured with `infer`" in result.stderr
