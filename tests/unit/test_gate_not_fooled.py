"""What a gate must not pass: another run in the candidate's place, itself, failed tests, rules about nothing."""

import pytest
from typer.testing import CliRunner

from pytest_infer.analysis.compare import rules
from pytest_infer.cli.main import app
from pytest_infer.errors import OptionError

BOUNDS = ("--rule", "ttft<=100s")
"""A rule that the runs here pass by themselves."""


@pytest.fixture
def gate(storage, monkeypatch, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    monkeypatch.chdir(outside)

    def run(*arguments):
        result = CliRunner().invoke(app, ["gate", *arguments, "--no-mark", f"--storage={storage.folder}"])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run


def test_a_whole_run_passes(storage, make_block, gate):
    storage.add([make_block()])
    assert gate("latest", *BOUNDS).exit_code == 0


@pytest.mark.parametrize("content", ['{"benchmarks": [', '{"datetime": NaN, "benchmarks": []}', "", "\xff"])
def test_the_newest_run_is_not_replaced_by_the_one_before(storage, make_block, gate, content):
    storage.add([make_block()])
    newest = storage.add([make_block()])
    newest.write_text(content, encoding="latin-1")
    result = gate("latest", *BOUNDS)
    assert result.exit_code == 2
    assert f"{newest.name} is newer than" in result.stderr
    # An older file that is damaged is left out as ever, and a run that is named is gated.
    assert gate("1", *BOUNDS).exit_code == 0


def test_an_older_damaged_file_does_not_matter(storage, make_block, gate):
    storage.add([make_block()]).write_text("{", encoding="utf-8")
    storage.add([make_block()])
    assert gate("latest", *BOUNDS).exit_code == 0


@pytest.mark.parametrize("against", ["latest", "branch:main", "main", "2", "commit:cccc"])
def test_a_run_is_never_its_own_baseline(storage, make_block, gate, against):
    first = storage.add([make_block(output_sha256="a" * 64)])
    storage.add([make_block(output_sha256="b" * 64)])
    result = gate("latest", "--against", against, "--rule", "output:exact")
    if against == "2":
        assert result.exit_code == 2
        assert "that is the run to be gated itself" in result.stderr
    else:
        # The newest other run that the name fits.
        assert result.exit_code == 1
        assert first.name[:4] in result.stdout.partition("against")[2][:20]


def test_the_only_run_of_a_branch_has_no_baseline_there(storage, make_block, gate):
    storage.add([make_block()], branch="main")
    storage.add([make_block()], branch="mine")
    result = gate("latest", "--against", "branch:mine", "--rule", "output:exact")
    assert (result.exit_code, "itself" in result.stderr) == (2, True)


@pytest.mark.parametrize("how", [{"failed": {"bench/t.py::t[new]": {}}}, {"unmeasured": ["bench/t.py::t[new]"]}])
@pytest.mark.parametrize("rule", [BOUNDS, ("--rule", "output:exact")])
def test_what_failed_or_was_not_measured_fails_unless_it_is_accepted(storage, make_block, gate, how, rule):
    storage.add([make_block()])
    storage.add([make_block()], **how)
    result = gate("latest", *rule)
    assert result.exit_code == 1
    assert "bench/t.py::t[new]" in result.stdout.replace("\n", "")
    assert gate("latest", *rule, "--allow-failed", "*t[[]new]").exit_code == 0


@pytest.mark.parametrize("rule", ["ttft[giude]:5%", "ttft[giude]<=1", "experts[giude]:drift<0.1", "output[x*]:exact"])
def test_a_rule_that_is_about_nothing_is_an_error(storage, make_block, gate, rule):
    storage.add([make_block()])
    storage.add([make_block()])
    result = gate("latest", "--rule", rule, "--rule", "tpot<=100s")
    assert result.exit_code == 2
    assert "is about no prompt of this run; near it: guide" in result.stderr


@pytest.mark.parametrize("rule", ["ttft<=1e999", "peak_rss<=1e308GiB"])
def test_a_bound_that_no_number_can_hold_is_an_error(rule):
    with pytest.raises(OptionError, match="more than a number can hold"):
        rules.parse([rule])
