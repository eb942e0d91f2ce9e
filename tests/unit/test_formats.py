"""The table of views and formats: commands offer what stands in it, and what they write is of that format."""

import csv
import io
import json
import re
from pathlib import Path

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from pytest_infer.cli.main import app
from pytest_infer.engines import models
from pytest_infer.measure.experts import dumps
from pytest_infer.measure.loading import process
from pytest_infer.records import CacheState, Loading, LoadingRound, PromptRecord, Reading
from pytest_infer.report.formats import VIEWS, Format

DATA = Path(__file__).parents[1] / "data"
LINES_ONLY = {
    "bisect", "init", "models", "undecided", "baseline set", "baseline list", "baseline forget", "experts export",
    "experts import",
    "site", "load-generator install", "load-generator status", "load-generator remove",
}  # fmt: skip
"""The commands that tell a line or two and have no view."""
FOLDER = str(models.BUNDLED[models.DEFAULT].ensure(str))

FLAGS = {
    ("gate --github", Format.GITHUB): ("--format=json",),
    # A table of docs, which is Markdown whatever the advice itself is written as.
    ("advice --rules", Format.MARKDOWN): ("--format=terminal",),
    ("placement", Format.KTRANSFORMERS): ("--format=ktransformers", "--export=counts.pt"),
}
"""What is typed where it is not --format alone."""
ALWAYS = {"gate": ("--rule=ttft:5%",), "placement": ("--gpu-memory=5MiB", f"--model={FOLDER}")}
BEFORE = {"comment": ("gate", "--rule=ttft:5%")}
"""What must have been done to the run."""
CELLS = [(view, form) for view, row in VIEWS.items() for form in row]


def commands():
    """Return each command with its parameters."""
    found = {}
    for name, command in typer.main.get_command(app).commands.items():
        inner = getattr(command, "commands", {})
        # What is meant where none is named goes by the name alone.
        mine = {f"{name} {other}".removesuffix(" show"): one.params for other, one in inner.items()}
        found |= mine or {name: command.params}
    return found


def offered(parameters):
    """Return the formats that a command names for its --format, None without that option."""
    of = next((p for p in parameters if "--format" in p.opts), None)
    return None if of is None else [Format(name) for name in of.metavar.strip("<>").split("|")]


# what tells the formats


def is_json(text):
    try:
        return isinstance(json.loads(text), dict | list)
    except ValueError:
        return False


def is_csv(text):
    heading, *rows = list(csv.reader(io.StringIO(text)))
    return (
        len(heading) > 1
        and all(re.fullmatch(r"[a-z][a-z0-9_.]*", name) for name in heading)
        and all(len(row) == len(heading) for row in rows)
    )


def is_map(text):
    return is_json(text) and set(json.loads(text).values()) <= {0, "cpu"}


def each(pattern):
    return lambda text: bool(text) and all(re.fullmatch(pattern, line) for line in text.splitlines())


OF_A_FORMAT = {
    Format.MARKDOWN: lambda text: re.search(r"^\|.*\|\n\|(-+\|)+\n\|", text, flags=re.MULTILINE) is not None,
    Format.JSON: is_json,
    Format.CSV: is_csv,
    Format.JSONL: lambda text: bool(text) and all(map(is_json, text.splitlines())),
    Format.PARQUET: lambda text: text.startswith("PAR1"),
    Format.HTML: lambda text: text.lower().startswith("<!doctype html>"),
    Format.GITHUB: each(r"::(error|warning|notice) title=[^:]+::.+"),
    Format.LLAMA_CPP: each(r"--n-gpu-layers \d+( --cpu-moe| --n-cpu-moe \d+| --override-tensor '.+=CPU')?"),
    Format.KTRANSFORMERS: each(r"--kt-expert-placement-strategy frequency --init-expert-location \S+ --kt-gpu-.+"),
    Format.DEVICE_MAP: is_map,
    Format.EXPERTS: each(r"\d+ \d+"),
}
OF_A_FORMAT[Format.TERMINAL] = lambda text: (
    bool(text) and not any(check(text) for form, check in OF_A_FORMAT.items() if form is not Format.TERMINAL)
)


# the table and the commands


def test_every_format_is_some_views_and_has_its_mark():
    assert {form for _, form in CELLS} == set(Format) == set(OF_A_FORMAT)


def test_every_command_has_a_view_or_tells_lines_only():
    assert set(commands()) == {view.partition(" --")[0] for view in VIEWS} | LINES_ONLY


@pytest.mark.parametrize("name", commands())
def test_a_command_offers_the_formats_of_its_row(name):
    formats = offered(commands()[name])
    if formats is None:
        flags = {form for view, form in FLAGS if view == name}
        assert len(set(VIEWS.get(name, ())) - flags) <= 1, "several formats, and no option that chooses"
    else:
        assert formats == list(VIEWS[name])


@pytest.mark.parametrize("name", [name for name, of in commands().items() if offered(of) is not None])
@pytest.mark.parametrize("form", Format)
def test_a_format_of_no_row_is_refused(name, form):
    if form not in VIEWS[name]:
        result = CliRunner().invoke(app, [name, f"--format={form.value}"], env={"COLUMNS": "300"})
        assert result.exit_code == 2
        assert f"'{form.value}' is not one of" in result.output


# what they write


@pytest.fixture
def stored(storage, make_block):
    """Two runs of one suite of a MoE model: the second one is slower."""
    config = json.loads(Path(FOLDER, "config.json").read_text())
    layers, experts, k = config["num_hidden_layers"], config["num_local_experts"], config["num_experts_per_tok"]
    for factor in (1.0, 2.0):
        blocks = []
        for number, name in enumerate(("story", "code")):
            counts = [[5 * k] * experts for _ in range(layers)]
            for row in counts:
                row[number] += experts
                row[-1] -= experts
            usage = {
                "check": "passed",
                "tokens": {"prefill": 5 * experts, "decode": 5 * experts},
                "sites": [
                    {"name": f"model.layers.{n}.mlp.experts", "layer": n, "kind": "mlp", "experts": experts}
                    | {"slots": experts, "k": k, "expert_bytes": 1024}
                    for n in range(layers)
                ],
                "counts": {"prefill": counts, "decode": counts},
            }
            ttft_s = [factor * t for t in (0.2, 0.2002, 0.1998, 0.2004, 0.1996, 0.2)]
            prompt = {"content_sha256": f"{number:064}"}
            blocks.append(make_block(name, prompt=prompt, experts=usage, ttft_s=ttft_s, kv_cache_bytes=1024))
        storage.add(blocks)
    return storage.folder


@pytest.fixture
def loads(monkeypatch):
    """Loads that no process makes."""
    of = msgspec.json.decode(DATA.joinpath("record-1.json").read_bytes(), type=PromptRecord).rounds[0]
    seen = Reading(value=1, source="test")
    load = Loading(cached=seen, read_bytes=seen, rss_anon_bytes=seen, rss_file_bytes=seen, peak_rss_bytes=seen)

    def ask(request, tell):
        state: CacheState = request.cache
        return LoadingRound(
            asked=state, model="mine", load_s=1.0, load=load, first=of, again=of, whole=of.counters, file_bytes=1
        )

    monkeypatch.setattr(process, "ask", ask)
    monkeypatch.setattr("pytest_infer.cli.loading.sys.platform", "linux")


@pytest.fixture
def asked(stored, loads, tmp_path, monkeypatch):
    """Return a function: what a command ends with that is asked for a format, and the file that it wrote, if any."""
    monkeypatch.setattr(dumps, "content", lambda counts: b"")  # by torch
    monkeypatch.chdir(tmp_path)

    def ask(view, form, charset="utf-8"):
        name = view.partition(" --")[0]
        arguments = [*view.split(), *ALWAYS.get(name, ()), *FLAGS.get((view, form), ())]
        if offered(commands()[name]) is not None and not any("--format" in word for word in arguments):
            arguments.append(f"--format={form.value}")
        if any("--storage" in parameter.opts for parameter in commands()[name]):
            arguments.append(f"--storage={stored}")
        file = tmp_path / f"written.{form.value}" if form in (Format.PARQUET, Format.HTML) else None
        if file is not None:
            arguments += ["--output", str(file)]
        if name in BEFORE:
            CliRunner().invoke(app, [*BEFORE[name], f"--storage={stored}"])
        result = CliRunner(charset=charset).invoke(app, arguments, env={"COLUMNS": "200"})
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert result.exit_code in (0, 1), result.output
        return result, file

    return ask


@pytest.mark.parametrize(("view", "form"), CELLS, ids=lambda value: str(getattr(value, "value", value)))
def test_what_is_written_is_of_its_format(asked, view, form):
    if form is Format.PARQUET:
        pytest.importorskip("pyarrow")
    result, file = asked(view, form)
    # Annotations stand beside the JSON of stdout.
    text = result.stderr if form is Format.GITHUB else result.stdout
    text = text if file is None else file.read_bytes().decode("latin-1")
    assert OF_A_FORMAT[form](text), text[:500]


@pytest.mark.parametrize("view", [view for view, form in CELLS if form is Format.TERMINAL])
def test_a_stream_that_lacks_signs_is_written_to(asked, view):
    result, _ = asked(view, Format.TERMINAL, charset="ascii")
    assert OF_A_FORMAT[Format.TERMINAL](result.stdout)
