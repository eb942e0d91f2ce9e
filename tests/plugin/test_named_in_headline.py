"""A slowness planted in one phase, or in one prompt, is what the headline of `--infer-against` names."""

import json
import re
import subprocess

import pytest

from pytest_infer.report.compare.headline import answers

ENGINE = """
import script

class Planned(Scripted):
    def generate(self, prompt_ids, limits, clock):
        first, step = script.delays(len(prompt_ids))
        self.delays = [first] + [step] * 5
        return super().generate(prompt_ids, limits, clock)

    def decode(self, token_ids):
        return " ".join(map(str, token_ids))

@pytest.fixture(scope="session")
def engine():
    return Planned()
"""
PROMPTS = "\n".join(
    f'[[prompt]]\nname = "{name}"\ntext = "{" ".join(["word"] * words)}"\nmax_new_tokens = 6'
    for words, name in enumerate(("story", "chat", "code"), 1)
)
STORY = 1
"""Tokens of the prompt of that name."""
RULES = "--infer-gate=output:exact,ttft:2%,tpot:2%"
WAYS = {
    # As many pairs as Holm's correction for six figures needs to be convinced by a signed rank.
    "round": ("--infer-turns=round", "--infer-min-pairs=16", "--infer-max-rounds=16"),
    "token": ("--infer-turns=token", "--infer-launches=4", "--infer-time=10s"),
}


@pytest.fixture
def repository(suite):
    """A repository whose engine waits on a virtual clock, which no load of the machine disturbs."""
    pytester = suite(engine=ENGINE, prompts=PROMPTS, virtual=True)
    (pytester.path / ".gitignore").write_text("__pycache__\n.pytest_cache\n.benchmarks\nresults\n.cache\n")
    git(pytester, "init", "-q", "-b", "main")
    commit(pytester, "0.02, 0.01")
    return pytester


def git(pytester, *args):
    who = ("-c", "user.name=T", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *who, *args], cwd=pytester.path, capture_output=True, check=True)


def commit(pytester, delays):
    """Commit an engine whose first token and steps take so long, an expression of the prompt's `tokens`."""
    (pytester.path / "script.py").write_text(f"def delays(tokens):\n    return {delays}\n")
    git(pytester, "add", "-A")
    git(pytester, "commit", "-q", "-m", "a commit")


def against(pytester, way, *options):
    return pytester.runpytest_subprocess("--infer-against=HEAD~1", "--infer-no-profile", RULES, *WAYS[way], *options)


PLANTED = {
    "prefill": ("0.021, 0.01", r"prefill [\d.]+ % slower \[[\d.]+, [\d.]+\], all 3 prompts"),
    "decode": ("0.02, 0.0105", r"decode [\d.]+ % slower \[[\d.]+, [\d.]+\], all 3 prompts"),
    "one-prompt": (
        f"0.02, 0.0105 if tokens == {STORY} else 0.01",
        r"decode of story [\d.]+ % slower \[[\d.]+, [\d.]+\]; the other 2 prompts unchanged",
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("where", PLANTED)
def test_what_five_percent_were_planted_in_is_named(repository, way, where, tmp_path, monkeypatch):
    delays, expected = PLANTED[where]
    commit(repository, delays)
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    result = against(repository, way, "--benchmark-autosave", "--infer-report=report.html")
    assert result.ret == 1
    said = [line for line in result.outlines if re.fullmatch(expected, line)]
    assert len(said) == 1, result.stdout.str()
    (run,) = repository.path.glob(".benchmarks/*/*.json")
    stored = json.loads(run.read_text())["pytest_infer"]["gate"]
    assert stored["headline"] == said[0]
    assert {change["judgement"]["metric"] for change in stored["suite"]} == {"ttft_s", "tpot_s"}
    assert re.sub(r"\\(.)", r"\1", summary.read_text().splitlines()[0]) == f"### {said[0]}"
    page = (repository.path / "report.html").read_text(encoding="utf-8")
    assert said[0] in page
    # The overview begins with the first of it.
    assert f"<h3>{answers(said[0])[0]}</h3>" in page


@pytest.mark.parametrize("way", WAYS)
def test_what_nothing_was_planted_in(repository, way):
    commit(repository, "0.02, 0.01  # the same")
    result = against(repository, way)
    assert result.ret == 0
    result.stdout.re_match_lines([r"no change beyond [\d.]+ %$", "suite: geometric mean over its prompts"])
