"""The windows of a fixed text, its perplexity by worked probabilities, and what it says where there is none."""

import math

import pytest

from pytest_infer.engines.base import Engine
from pytest_infer.errors import OptionError
from pytest_infer.measure import text
from pytest_infer.measure.text import TextScorer, windows


class Counting(Engine):
    """Predicts id n with probability 1 / (n + 2), and better by half in a context of four tokens or more."""

    def __init__(self, context=None):
        self.context, self.calls = context, []

    def encode(self, prompt):
        return [len(word) for word in prompt.text.split()]

    def context_length(self):
        return self.context

    def log_probabilities(self, token_ids, first):
        self.calls.append((len(token_ids), first))
        return [-math.log(token_ids[n] + 2) + (math.log(1.5) if n >= 4 else 0.0) for n in range(first, len(token_ids))]


@pytest.mark.parametrize("tokens", [2, 5, 7, 8, 9, 12, 13, 100])
@pytest.mark.parametrize("window", [2, 5, 8])
def test_every_token_but_the_first_counts_once(tokens, window):
    stride = window // 2
    found = list(windows(tokens, window, stride))
    counted = [n for _, end, first in found for n in range(first, end)]
    assert counted == list(range(1, tokens))
    for begin, end, first in found:
        assert end - begin <= window
        # All but the first window have context.
        assert first - begin >= (1 if begin == 0 else window - stride)


def plain(ids, window, stride, log_probability):
    """Return the mean negative log-likelihood as transformers' guide to perplexity has it."""
    total, count, previous = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + window, len(ids))
        fed, targets = ids[begin:end], end - previous
        for n in range(max(1, len(fed) - targets), len(fed)):
            total -= log_probability(fed, n)
            count += 1
        previous = end
        if end == len(ids):
            break
    return total / count


@pytest.mark.parametrize(("words", "context"), [(3, None), (9, 8), (50, 8), (2000, None), (1000, 64)])
def test_as_a_plain_sliding_window(tmp_path, words, context):
    file = tmp_path / "text.txt"
    file.write_text(" ".join("x" * (1 + n % 7) for n in range(words)))
    engine = Counting(context)
    score, why = TextScorer(file).score(engine, "model")
    window = min(512, context or 512)
    ids = [1 + n % 7 for n in range(words)]
    worked = plain(ids, window, window // 2, lambda fed, n: engine.log_probabilities(fed, n)[0])
    assert why is None
    assert score.nll == pytest.approx(worked, rel=1e-12)
    assert (score.tokens, score.window, score.stride, score.name) == (words - 1, window, window // 2, "text.txt")


def test_what_system_wrote_the_text_changes_nothing(tmp_path):
    class Spelling(Counting):
        def encode(self, prompt):
            return list(prompt.text.encode())

    found = []
    for written in (b"one two\nthree\n", b"\xef\xbb\xbfone two\nthree\n", b"one two\r\nthree\r\n"):
        (tmp_path / "text.txt").write_bytes(written)
        found.append(TextScorer(tmp_path / "text.txt").score(Spelling(), "model"))
    assert found[1:] == found[:1] * 2


def test_each_model_is_scored_once(tmp_path):
    (tmp_path / "a").write_text("one two three")
    scorer, engine = TextScorer(tmp_path / "a"), Counting()
    first = scorer.score(engine, "one")
    assert scorer.score(engine, "one") is first
    assert len(engine.calls) == 1
    scorer.score(engine, "another")
    scorer.score(Counting(), "one")
    assert len(engine.calls) == 2


class Silent(Counting):
    log_probabilities = Engine.log_probabilities


class Broken(Counting):
    def log_probabilities(self, token_ids, first):
        raise RuntimeError("out of\nmemory")


class Endless(Counting):
    def log_probabilities(self, token_ids, first):
        return [-math.inf] * (len(token_ids) - first)


@pytest.mark.parametrize(
    ("engine", "content", "says"),
    [
        (Silent(), "one two", "tells no probabilities"),
        (Broken(), "one two", "RuntimeError: out of memory"),
        (Endless(), "one two", "no finite log-probability"),
        (Counting(), "one", "no two tokens"),
    ],
)
def test_why_there_is_none(tmp_path, engine, content, says):
    (tmp_path / "a").write_text(content)
    score, why = TextScorer(tmp_path / "a").score(engine, "model")
    assert score is None
    assert says in why


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No such file"),
        (b"\xff a", "not UTF-8"),
        ("one two".encode("utf-16"), "save it as UTF-8"),
        (b"\xef\xbb\xbf \n", "there is no text in it"),
        ("folder", "a folder"),
    ],
)
def test_a_file_that_is_no_text(tmp_path, content, says):
    path = tmp_path / "a"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(OptionError, match=says):
        TextScorer(path)


def test_the_bundled_text_is_there():
    assert 12_000 < len(text.BUNDLED.read_text(encoding="utf-8")) < 13_000
