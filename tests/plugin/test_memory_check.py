"""Before a model is loaded: a warning, or with --infer-strict-memory a refusal, when it needs more than there is."""

import pytest

from pytest_infer.engines.transformers.engine import TransformersEngine
from pytest_infer.measure.machine import host

SHORT = "reference-moe in float32 takes 13.*available: pytest-infer doctor --model reference-moe"


@pytest.fixture
def ours(pytester, monkeypatch):
    """Return a suite on the bundled model, in whose machine so many bytes are left; loading it is forbidden."""

    def make(available):
        monkeypatch.setattr(host, "available_bytes", lambda: available)
        pytester.makepyfile("def test_prompt(infer, prompt):\n    infer(prompt)")
        pytester.makeconftest(
            "from pytest_infer.engines import models\n"
            "from pytest_infer.engines.transformers.engine import TransformersEngine\n"
            "from pytest_infer.errors import ModelError\n"
            "def check(self):\n    self._source = models.resolve(self.options.model, print)\n"
            "def load(self):\n    raise ModelError('loaded')\n"
            "TransformersEngine.check, TransformersEngine.load = check, load\n"
            "TransformersEngine.context_length = lambda self: None\n"
            "TransformersEngine.encode = lambda self, prompt: [1, 2, 3]\n"
        )
        pytester.path.joinpath("prompts.toml").write_text("[[prompt]]\nname = 'p'\ntext = 'one'\n", encoding="utf-8")
        return pytester

    return make


@pytest.fixture(autouse=True)
def _methods_are_given_back(monkeypatch):
    # What the inner conftest replaces, so that torch is not needed: it cannot be imported twice in a process.
    for name in ("check", "load", "context_length", "encode"):
        monkeypatch.setattr(TransformersEngine, name, getattr(TransformersEngine, name))


def test_too_little_memory_is_told_before_loading(ours):
    result = ours(10 << 20).runpytest_inprocess()
    text = result.stdout.str()
    result.stdout.re_match_lines([f"pytest-infer: {SHORT}.*", ".*loaded.*", f"! {SHORT.partition('.*')[0]}.*"])
    assert text.index("available:") < text.index("loaded")


def test_strict_memory_refuses_before_loading(ours):
    result = ours(10 << 20).runpytest_inprocess("--infer-strict-memory")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "available: pytest-infer doctor" in result.stderr.str()
    assert "loaded" not in result.stdout.str() + result.stderr.str()


def test_enough_memory_is_no_word(ours):
    result = ours(1 << 30).runpytest_inprocess("--infer-strict-memory")
    assert "available:" not in result.stdout.str() + result.stderr.str()
    assert "loaded" in result.stdout.str()
