"""The pages agree with the code, their links lead somewhere, and the small commands work."""

import dataclasses
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pytest_infer.cli.main import app
from pytest_infer.engines.models import BUNDLED
from pytest_infer.errors import ModelError
from pytest_infer.metrics import METRICS
from pytest_infer.pytest_face.options import OPTIONS
from pytest_infer.report.formats import Format
from pytest_infer.report.metrics import as_markdown as metrics_table

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
in_the_source_tree = pytest.mark.skipif(not DOCS.exists(), reason="the wheel is tested without docs/")


@in_the_source_tree
def test_the_table_of_metrics_is_that_of_the_code():
    page = (DOCS / "metrics.md").read_text(encoding="utf-8")
    shown = page.partition("<!-- metrics:begin -->\n")[2].partition("<!-- metrics:end -->")[0]
    assert shown == metrics_table(METRICS), "run: pytest-infer metrics --format markdown"


@in_the_source_tree
def test_links_lead_to_files():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md"), *ROOT.glob("plugin/reference_moe/*.md")]
    for page in pages:
        links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
        assert links or page != ROOT / "README.md"
        for target in (link.partition("#")[0] for link in links if "://" not in link):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@in_the_source_tree
def test_pages_name_only_options_that_exist():
    known = {option.command_line for option in OPTIONS}
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")]:
        named = set(re.findall(r"--infer-[a-z-]+", page.read_text(encoding="utf-8")))
        assert named <= known, f"{page.name}: {named - known}"


@in_the_source_tree
@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_every_option_is_on_a_page(option):
    assert any(option.command_line in page.read_text(encoding="utf-8") for page in DOCS.rglob("*.md"))


@in_the_source_tree
@pytest.mark.parametrize("form", Format)
def test_every_output_format_is_on_a_page(form):
    pages = " ".join(page.read_text(encoding="utf-8") for page in DOCS.rglob("*.md"))
    assert re.search(rf"(?<![\w.-]){re.escape(form.value)}(?![\w-])", pages, flags=re.IGNORECASE)


def run(*arguments):
    return CliRunner().invoke(app, arguments)


def test_metrics_lists_every_key():
    result = run("metrics", "--format", "markdown")
    assert result.exit_code == 0
    assert result.output == metrics_table(METRICS)


def test_metrics_for_people_names_every_key_and_definition(monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    result = run("metrics")
    assert result.exit_code == 0
    lines = {line.split()[0]: line for line in result.output.splitlines()[1:]}
    assert list(lines) == [m.key for m in METRICS]
    assert all(m.definition in lines[m.key] for m in METRICS)


def test_models_lists_the_bundled_ones():
    result = run("models")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.output.splitlines()] == list(BUNDLED)


def test_an_unknown_model_is_one_line():
    result = run("models", "--build", "x")
    assert result.exit_code == 2
    assert result.output.splitlines() == ["pytest-infer: unknown model 'x'; known: reference-moe, smollm2, smollm2-moe"]


def test_building_what_is_shipped_tells_its_folder():
    result = run("models", "--build", "reference-moe")
    assert result.exit_code == 0
    assert (Path(result.output.strip()) / "config.json").is_file()


def test_a_model_that_cannot_be_built_is_one_line(monkeypatch):
    def ensure(progress):
        progress("building …")
        raise ModelError("there is no room; free 300 MiB")

    monkeypatch.setitem(BUNDLED, "smollm2", dataclasses.replace(BUNDLED["smollm2"], ensure=ensure))
    result = run("models", "--build", "smollm2")
    assert result.exit_code == 2
    assert result.output.splitlines() == ["building …", "pytest-infer: there is no room; free 300 MiB"]
    assert result.stdout == ""
