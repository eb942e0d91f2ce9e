"""Runs that follow given tokens: a stored run's, the base's of an A/B run, those of a sweep's first configuration."""

import json
import math

import numpy as np
import pytest
from scratch import History

from pytest_infer.measure import following
from pytest_infer.measure.warnings import hash_ids
from pytest_infer.pytest_face import session as sessions
from pytest_infer.storage import runs, sidecar

ENGINE = """
import math
import struct

import script
from pytest_infer.records import Scores


class Following(Scripted):
    '''Generates three of four ids, one after the other, and gives each id the same probability at every position.'''

    given, keep, full, kept, log = None, False, None, None, []

    def follow(self, token_ids):
        self.given = token_ids

    def keep_scores(self, *, keep, full=None):
        self.keep, self.full, self.kept = keep, full, None

    def scores(self):
        return self.kept

    def log_probabilities(self, token_ids, first):
        return [math.log(script.P[0])] * (len(token_ids) - first)

    def generate(self, prompt_ids, limits, clock):
        free = [(script.FIRST + n) % 4 for n in range(3)][: limits.max_new_tokens]
        tokens = free if self.given is None else list(self.given)
        for token in tokens:
            self.wait(0.001)
            clock.tick([token])
        if self.keep:
            n, row = len(tokens), [math.log(p) for p in script.P]
            order = sorted(range(4), key=lambda i: -row[i])
            if self.full is not None:
                self.full.write_bytes(struct.pack("<4f", *row) * n)
            self.kept = Scores(
                sequences=1, positions=n, width=4, vocabulary=4,
                tokens=struct.pack(f"<{n}i", *tokens),
                chosen=struct.pack(f"<{n}f", *(row[t] for t in tokens)),
                top_ids=struct.pack("<4i", *order) * n,
                top=struct.pack("<4f", *sorted(row, reverse=True)) * n,
                rest=struct.pack("<f", -math.inf) * n,
            )
        return StopReason.LENGTH


class Unable(Scripted):
    def generate(self, prompt_ids, limits, clock):
        for n in range(limits.max_new_tokens):
            clock.tick([(script.FIRST + n) % 4])
        return StopReason.LENGTH


@pytest.fixture(scope="session")
def engine():
    return (Following if script.ABLE else Unable)()
"""
BEFORE, AFTER = [0.5, 0.25, 0.125, 0.125], [0.25, 0.5, 0.125, 0.125]
FEW = ("--infer-rounds=2", "--infer-no-probe", "--infer-timeline=off")
TEST = "test_suite.py::test_prompt[first]"


class Keep:
    """A plugin that keeps what the session knows at the end."""

    def pytest_sessionfinish(self, session):
        self.run = session.config.stash[sessions.KEY]


class Suite:
    def __init__(self, pytester):
        self.pytester, self.path = pytester, pytester.path

    def script(self, first=0, p=BEFORE, *, able=True):
        self.path.joinpath("script.py").write_text(f"FIRST, P, ABLE = {first}, {p}, {able}\n")

    def run(self, *arguments):
        return self.pytester.runpytest("-p", "no:cacheprovider", *FEW, *arguments)

    def kept(self, *arguments):
        """Run in this process and return the session too."""
        keep = Keep()
        result = self.pytester.runpytest(*FEW, "--infer-gate=off", *arguments, plugins=[keep])
        return result, keep.run

    def stored(self, number):
        """Return rows by name and the arrays of a stored run."""
        (path,) = self.path.glob(f".benchmarks/*/{number:04}_*.json")
        return {row.name: row for row in runs.rows(path)}, sidecar.read(path)


@pytest.fixture
def suite_of(suite, monkeypatch):
    made = Suite(suite(engine=ENGINE))
    made.script()
    return made


# an engine that cannot decode


@pytest.mark.parametrize(("known", "text"), [("0, 1, 2", "0 1 2"), ("", "")], ids=["some ids", "none"])
def test_an_id_without_a_text_loses_no_round(suite_of, known, text):
    conftest = suite_of.path / "conftest.py"
    conftest.write_text(
        f"{conftest.read_text()}\n\ndef decode(self, ids, plain=Scripted.decode):\n"
        f"    if not set(ids) <= {{{known or None}}}:\n        raise IndexError('piece id is out of range')\n"
        "    return plain(self, ids)\n\n\nScripted.decode = decode\n"
    )
    result = suite_of.run("--benchmark-autosave")
    result.assert_outcomes(passed=2)
    note = "first]: Engine.decode failed: IndexError: piece id is out of range; what was timed is kept"
    assert note in " ".join(result.stdout.str().split())
    rows, arrays = suite_of.stored(1)
    assert rows["first"].metrics["output_sha256"].value == hash_ids((0, 1, 2))
    assert not sidecar.pieces(arrays, TEST)
    (path,) = suite_of.path.glob(".benchmarks/*/0001_*.json")
    row = json.loads(path.read_text())["benchmarks"][0]
    assert row["extra_info"]["pytest_infer"]["output"]["text"] == text


# a stored run


def test_the_timed_rounds_follow_where_the_free_output_is_another(suite_of):
    suite_of.run("--benchmark-autosave").assert_outcomes(passed=2)
    suite_of.script(first=1, p=AFTER)
    result = suite_of.run("--benchmark-autosave", "--infer-replay=latest")
    result.assert_outcomes(passed=2)
    rows, arrays = suite_of.stored(2)
    row = rows["first"]
    assert (row.reference.tokens, row.reference.timed, row.reference.problem) == (3, True, None)
    assert row.reference.sha256 == hash_ids((0, 1, 2))
    assert row.reference.name.startswith("0001")
    # What is generated freely is told all the same.
    assert row.metrics["output_sha256"].value == hash_ids((1, 2, 3))
    for number in (0, 1):
        assert arrays[f"{TEST}|{number}|token_ids"].tolist() == [0, 1, 2]
    assert arrays[f"{TEST}|scores|tokens"].tolist() == [[0, 1, 2]]
    assert arrays[f"{TEST}|scores|chosen"][0] == pytest.approx([math.log(AFTER[t]) for t in (0, 1, 2)], abs=1e-6)
    assert arrays[f"{TEST}|reference|chosen"][0] == pytest.approx([math.log(BEFORE[t]) for t in (0, 1, 2)], abs=1e-6)
    assert f"{TEST}|reference|kl" not in arrays
    assert sidecar.pieces(arrays, TEST)[3]


def test_the_timed_rounds_are_free_where_the_output_is_the_same(suite_of):
    suite_of.run("--benchmark-autosave")
    suite_of.script(p=AFTER)
    suite_of.run("--benchmark-autosave", "--infer-replay=1", "--infer-warmup=0").assert_outcomes(passed=2)
    rows, arrays = suite_of.stored(2)
    assert (rows["second"].reference.timed, rows["second"].reference.problem) == (False, None)
    assert arrays["test_suite.py::test_prompt[second]|reference|top"].shape == (1, 3, 4)


def test_what_is_followed_is_cut_to_the_limit(suite_of):
    suite_of.run("--benchmark-autosave")
    suite_of.script(first=1)
    suite_of.run("--benchmark-autosave", "--infer-replay=1", "--infer-max-new-tokens=2").assert_outcomes(passed=2)
    rows, arrays = suite_of.stored(2)
    assert rows["first"].reference.tokens == 2
    assert arrays[f"{TEST}|0|token_ids"].tolist() == [0, 1]
    assert arrays[f"{TEST}|reference|top"].shape == (1, 2, 4)


def test_a_run_that_followed_can_be_followed(suite_of):
    suite_of.run("--benchmark-autosave")
    suite_of.script(first=1)
    suite_of.run("--benchmark-autosave", "--infer-replay=1")
    suite_of.script(first=2)
    suite_of.run("--benchmark-autosave", "--infer-replay=2").assert_outcomes(passed=2)
    assert suite_of.stored(3)[1][f"{TEST}|0|token_ids"].tolist() == [0, 1, 2]


def test_an_engine_that_cannot_follow_is_named(suite_of):
    suite_of.run("--benchmark-autosave")
    suite_of.script(first=1, able=False)
    result = suite_of.run("--benchmark-autosave", "--infer-replay=latest")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines([f"*--infer-replay: {following.CANNOT}*"])
    rows, arrays = suite_of.stored(2)
    assert (rows["first"].reference.timed, rows["first"].reference.problem) == (False, following.CANNOT)
    assert arrays[f"{TEST}|0|token_ids"].tolist() == [1, 2, 3]
    assert rows["first"].scores.absent == "the engine offers no scores"


def test_prompts_that_the_run_lacks_follow_nothing(suite_of):
    suite_of.run("--benchmark-autosave", "-k", "first")
    result = suite_of.run("--benchmark-autosave", "--infer-replay=latest")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*--infer-replay: 1 of 2 prompts are not in run 0001*"])
    rows, _ = suite_of.stored(2)
    assert rows["first"].reference is not None
    assert rows["second"].reference is None


def test_another_text_of_the_same_name_is_not_followed(suite_of):
    suite_of.run("--benchmark-autosave")
    prompts = suite_of.path / "prompts.toml"
    prompts.write_text(prompts.read_text().replace("four five", "six"))
    suite_of.run("--benchmark-autosave", "--infer-replay=latest").assert_outcomes(passed=2)
    assert suite_of.stored(2)[0]["second"].reference is None


def refused(result, *parts):
    text = f"{result.stdout}\n{result.stderr}"
    assert result.ret == pytest.ExitCode.USAGE_ERROR, text
    (line,) = [line for line in text.splitlines() if line.startswith("ERROR: pytest-infer: ")]
    assert all(part in line for part in parts), line


def test_a_wrong_run_is_refused_in_one_line(suite_of):
    refused(suite_of.run("--infer-replay=latest"), "--infer-replay: no run 'latest': none is stored")
    suite_of.run("--benchmark-autosave", "-k", "first")
    refused(suite_of.run("--infer-replay=77"), "--infer-replay: no run '77' among the 1")
    refused(suite_of.run("--infer-replay=baseline:main"), "--infer-replay: no run 'baseline:main'")
    refused(suite_of.run("--infer-replay=latest", "-k", "second"), "run 0001", "none of the prompts")
    (arrays,) = suite_of.path.glob(".benchmarks/*/0001_*.npz")
    arrays.write_bytes(arrays.read_bytes()[:100])
    refused(suite_of.run("--infer-replay=latest"), "--infer-replay: ", arrays.name, "cannot be read")
    arrays.unlink()
    refused(suite_of.run("--infer-replay=latest"), "run 0001", f"has no {arrays.name}")


@pytest.mark.parametrize("other", ["--infer-against=self", "--infer-no-profile"])
def test_what_cannot_be_combined(suite_of, other):
    refused(
        suite_of.run("--infer-replay=latest", other), "--infer-replay cannot be combined with", other.partition("=")[0]
    )


# two commits


@pytest.fixture
def commits(suite_of, monkeypatch):
    monkeypatch.setenv("PYTEST_ADDOPTS", "--infer-repeat-disturbed=0 --infer-launches=1 --infer-time=1s")
    history = History(suite_of.path)

    def make(first=1, p=AFTER, *, able=True):
        suite_of.script(able=able)
        history.commit()
        suite_of.script(first=first, p=p, able=able)
        return suite_of

    return make


KL = sum(p * math.log(p / q) for p, q in zip(BEFORE, AFTER, strict=True))
WAYS = {
    "token": (),
    "round": ("--infer-turns=round", "--infer-min-pairs=3", "--infer-max-rounds=3"),
    "blocks": ("--infer-against-sequential", "--infer-max-rounds=4"),
}


@pytest.mark.parametrize("way", WAYS)
def test_both_sides_do_the_same_work(commits, way):
    suite_of = commits()
    result, run = suite_of.kept("--infer-against=HEAD", "--benchmark-autosave", *WAYS[way])
    result.assert_outcomes(passed=2)
    for base, ours in run.pairs.values():
        for one in (*base.rounds, *ours.rounds):
            assert one.trace.token_ids == (0, 1, 2)
        assert (base.output.text, ours.output.text) == ("0 1 2", "1 2 3")
        assert ours.reference.timed
        assert ours.reference.free == (1, 2, 3)
        assert ours.reference.scores == base.profile.scores
        assert np.frombuffer(ours.profile.scores.tokens, "<i4").tolist() == [0, 1, 2]
        if way == "blocks":
            assert (ours.reference.kl, base.reference) == (None, None)
            assert "one after the other" in ours.reference.kl_absent
        else:
            assert np.frombuffer(ours.reference.kl) == pytest.approx([KL] * 3, abs=1e-6)
            assert base.reference.timed
            assert base.reference.tokens == ours.reference.tokens
    rows, arrays = suite_of.stored(1)
    assert rows["first"].reference.timed
    assert (f"{TEST}|reference|kl" in arrays) == (way != "blocks")


@pytest.mark.parametrize("way", WAYS)
def test_equal_tokens_leave_the_timed_rounds_free(commits, way):
    suite_of = commits(first=0)
    result, run = suite_of.kept("--infer-against=HEAD", *WAYS[way])
    result.assert_outcomes(passed=2)
    for _, ours in run.pairs.values():
        assert (ours.reference.timed, ours.reference.problem) == (False, None)
        assert ours.reference.scores is not None


@pytest.mark.parametrize("way", WAYS)
def test_engines_that_cannot_follow_are_compared_as_before(commits, way):
    suite_of = commits(able=False)
    result, run = suite_of.kept("--infer-against=HEAD", *WAYS[way])
    result.assert_outcomes(passed=2)
    for base, ours in run.pairs.values():
        assert (base.rounds[0].trace.token_ids, ours.rounds[0].trace.token_ids) == ((0, 1, 2), (1, 2, 3))
        assert (ours.reference.timed, ours.reference.problem) == (False, following.CANNOT)


@pytest.mark.parametrize("way", WAYS)
def test_what_a_side_is_not_asked_for_is_not_followed(commits, way):
    suite_of = commits(first=0)
    prompts = suite_of.path / "prompts.toml"
    prompts.write_text(prompts.read_text().replace("max_new_tokens = 3", "max_new_tokens = 2"))
    result, run = suite_of.kept("--infer-against=HEAD", "-kfirst", *WAYS[way])
    result.assert_outcomes(passed=1)
    ((base, ours),) = run.pairs.values()
    assert (base.rounds[-1].trace.token_ids, ours.rounds[-1].trace.token_ids) == ((0, 1, 2), (0, 1))
    assert ours.reference.problem == "the sides are asked for other numbers of tokens"


def test_no_files_are_left(commits, monkeypatch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    commits().kept("--infer-against=HEAD", *WAYS["token"])
    assert list(folder.rglob("*.f32")) == []


# a sweep


@pytest.fixture
def swept(suite_of):
    """The suite on an engine that is installed, whose tokens and probabilities are those of its dtype."""
    pytester = suite_of.pytester
    engine = suite_of.path.joinpath("conftest.py").read_text().rpartition("@pytest.fixture")[0]
    pytester.makepyfile(
        swept_engine=engine
        + """
class Swept(Following):
    def __init__(self, options):
        super().__init__()
        self.options = options

    def load(self):
        return ModelInfo(name=self.options.model, engine="swept", dtype=self.options.dtype, vocabulary=4)

    def generate(self, prompt_ids, limits, clock):
        narrow = self.options.dtype == "bfloat16"
        script.FIRST, script.P = (1, [0.25, 0.5, 0.125, 0.125]) if narrow else (0, [0.5, 0.25, 0.125, 0.125])
        return super().generate(prompt_ids, limits, clock)
"""
    )
    suite_of.path.joinpath("conftest.py").unlink()
    info = pytester.mkdir("swept-1.0.dist-info")
    info.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: swept\nVersion: 1.0\n")
    info.joinpath("entry_points.txt").write_text("[pytest_infer.engines]\nswept = swept_engine:Swept\n")
    pytester.syspathinsert()
    return suite_of


def sweep(swept, *arguments):
    result = swept.run("--infer-engine=swept", "--benchmark-autosave", *arguments)
    assert result.ret == 0, result.stdout.str()
    (path,) = swept.path.glob(".benchmarks/*/0001_*.json")
    return {(row.name, *row.config.values()): row for row in runs.rows(path)}, sidecar.read(path)


def test_the_first_configuration_is_followed_by_the_others(swept):
    rows, arrays = sweep(swept, "--infer-sweep=dtype=float32,bfloat16,float16")
    assert len(rows) == 6
    for name in ("first", "second"):
        assert rows[name, "float32"].reference is None
        assert (rows[name, "bfloat16"].reference.timed, rows[name, "float16"].reference.timed) == (True, False)
        assert rows[name, "bfloat16"].reference.name == "dtype=float32"
        test = rows[name, "bfloat16"].test
        assert arrays[f"{test}|0|token_ids"].tolist() == [0, 1, 2]
        assert arrays[f"{test}|reference|chosen"][0] == pytest.approx([math.log(BEFORE[t]) for t in range(3)], abs=1e-6)
        assert rows[name, "bfloat16"].metrics["output_sha256"].value == hash_ids((1, 2, 3))


def test_other_work_is_not_followed(swept):
    rows, _ = sweep(swept, "--infer-sweep=model=one,two", "--infer-sweep=max-new-tokens=2,3")
    assert len(rows) == 8
    assert all(row.reference is None for row in rows.values())


def test_a_sweep_may_follow_a_stored_run(swept):
    swept.run("--infer-engine=swept", "--benchmark-autosave", "--infer-dtype=bfloat16")
    result = swept.run(
        "--infer-engine=swept", "--benchmark-autosave", "--infer-sweep=dtype=float32,bfloat16", "--infer-replay=1"
    )
    assert result.ret == 0
    rows, arrays = swept.stored(2)
    (path,) = swept.path.glob(".benchmarks/*/0002_*.json")
    assert {(*row.config.values(), row.reference.timed) for row in runs.rows(path)} == {
        ("float32", True),
        ("bfloat16", False),
    }
    assert arrays[f"{rows['first'].test}|0|token_ids"].tolist() == [1, 2, 3]


# a text


def test_the_perplexity_of_a_text(suite_of):
    (suite_of.path / "some.txt").write_text("a b c d e")
    suite_of.run("--benchmark-autosave", "--infer-text=some.txt").assert_outcomes(passed=2)
    _, run = suite_of.kept("--infer-text=some.txt")
    texts = [kept.record.profile.text for kept in run.keeper.finished.values()]
    assert [(text.name, text.tokens) for text in texts] == [("some.txt", 4)] * 2
    assert texts[0].nll == pytest.approx(math.log(2))


def test_the_bundled_text(suite_of):
    _, run = suite_of.kept("--infer-text")
    assert {kept.record.profile.text.name for kept in run.keeper.finished.values()} == {"held-out.txt"}


def test_a_wrong_text_is_refused_in_one_line(suite_of):
    refused(suite_of.run("--infer-text=none.txt"), "--infer-text", "none.txt", "No such file")
    refused(suite_of.run("--infer-text=.", "--infer-no-profile"), "--infer-text", "leave out --infer-no-profile")
    refused(suite_of.run("--infer-text=."), "--infer-text", "a folder")


def test_a_text_of_the_ini_file_is_for_runs_with_a_profile_round(suite_of):
    suite_of.path.joinpath("pytest.ini").write_text("[pytest]\ninfer_text = none.txt\n")
    suite_of.run("--infer-no-profile").assert_outcomes(passed=2)
    refused(suite_of.run(), "none.txt", "No such file")


def test_both_sides_score_the_text(commits):
    suite_of = commits()
    (suite_of.path / "some.txt").write_text("a b c d e")
    _, run = suite_of.kept("--infer-against=HEAD", "--infer-text=some.txt")
    base, ours = run.pairs[TEST]
    assert base.profile.text.nll == pytest.approx(math.log(2))
    assert ours.profile.text.nll == pytest.approx(math.log(4))


def test_stored_blocks_are_json(suite_of):
    suite_of.run("--benchmark-autosave", "--infer-text")
    (path,) = suite_of.path.glob(".benchmarks/*/0001_*.json")
    json.loads(path.read_text(), parse_constant=pytest.fail)
