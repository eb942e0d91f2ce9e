"""The perplexity of the bundled text is that of a plain sliding-window script over transformers' own loss."""

import math

import pytest
from lazily import torch

from pytest_infer.engines.base import EngineOptions
from pytest_infer.measure.text import BUNDLED, TextScorer

pytestmark = pytest.mark.real


def plain(model, ids, window, stride):
    """Return the perplexity as transformers' guide to it has it, and of how many tokens."""
    total, count, previous = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + window, len(ids))
        fed = torch.tensor([ids[begin:end]])
        labels = fed.clone()
        labels[:, : -(end - previous)] = -100
        scored = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            total += float(model(fed, labels=labels).loss) * scored
        count, previous = count + scored, end
        if end == len(ids):
            break
    return math.exp(total / count), count


@pytest.mark.parametrize("name", ["reference-moe", "tiny"])
def test_as_a_plain_sliding_window(model_folder, name):
    from pytest_infer.engines.transformers.engine import TransformersEngine

    engine = TransformersEngine(EngineOptions(model=name if name != "tiny" else str(model_folder("qwen3_moe"))))
    info = engine.load()
    score, why = TextScorer(BUNDLED).score(engine, info)
    assert why is None
    ids = engine._tokenizer(BUNDLED.read_text(encoding="utf-8"))["input_ids"]
    worked, count = plain(engine.running.model, ids, score.window, score.stride)
    assert score.tokens == count == len(ids) - 1
    assert math.exp(score.nll) == pytest.approx(worked, rel=1e-4)
    # Prose that reference-moe was not trained on; of all that was held out it is 54.9, and 40.0 with the rest.
    if name == "reference-moe":
        assert 40 < worked < 70
    engine.close()
