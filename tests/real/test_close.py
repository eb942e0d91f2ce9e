"""`output:close` on real models: another way of computing the same is close, and every planted fault is not."""

from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
from lazily import Late, torch, transformers
from tiny import build

from pytest_infer.engines.models import BUNDLED

distributions = Late("pytest_infer.analysis.fidelity.distributions")
figures = Late("pytest_infer.analysis.fidelity.figures")
closeness = Late("pytest_infer.analysis.fidelity.closeness")

pytestmark = pytest.mark.real

PROMPT, GENERATED = 12, 40
KINDS = ("reference-moe", "mixtral", "qwen3_moe", "olmoe", "phimoe")


@dataclass
class Text:
    """A model, the ids of a prompt with what it goes on with, and its predictions of that."""

    model: object
    ids: object
    side: object

    def apart(self, model=None, ids=None, positions=None):
        """Return how far predictions of the same output are from the model's own."""
        return figures.positions(self.side, side(model or self.model, self.ids if ids is None else ids, positions))

    def close(self, **changes):
        return closeness.close(self.apart(**changes), closeness.BOUNDS["float32"])


def side(model, ids, positions=None):
    with torch.inference_mode():
        logits = model(ids, position_ids=positions, use_cache=False).logits[0, -GENERATED - 1 : -1]
    of = distributions.whole(logits.double().numpy())
    tokens = ids[0, -GENERATED:].numpy()
    return figures.Side(tokens=tokens, logprobs=of.logprobs[np.arange(GENERATED), tokens], of=of)


@pytest.fixture(scope="module", params=KINDS)
def text(request):
    if request.param in BUNDLED:
        folder = BUNDLED[request.param].ensure(print)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    else:
        model = build(request.param)
    model.set_experts_implementation("eager")
    torch.manual_seed(3)
    ids = torch.randint(5, model.config.vocab_size, (1, PROMPT))
    with torch.inference_mode():
        for _ in range(GENERATED):
            ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    return Text(model=model, ids=ids, side=side(model, ids))


@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm"])
def test_another_implementation_of_experts_is_close(text, implementation):
    text.model.set_experts_implementation(implementation)
    try:
        found = text.apart()
    finally:
        text.model.set_experts_implementation("eager")
    assert found.kl_mean < closeness.BOUNDS["float32"] / 10


@contextmanager
def scaled(model, layer, expert, by):
    weights = [
        value[expert]
        for name, value in model.named_parameters()
        if f"layers.{layer}." in name and ".experts." in name and value.dim() == 3
    ]
    assert weights
    kept = [weight.clone() for weight in weights]
    with torch.no_grad():
        for weight in weights:
            weight.mul_(by)
    yield
    with torch.no_grad():
        for weight, before in zip(weights, kept, strict=True):
            weight.copy_(before)


@pytest.mark.parametrize("by", [1.01, 1.1, 0.0])
def test_an_expert_with_other_weights_is_not(text, by):
    faults = 0
    for layer in range(text.model.config.num_hidden_layers):
        for expert in range(2):
            with scaled(text.model, layer, expert, 0.0):
                chosen = bool(text.apart().kl.any())
            with scaled(text.model, layer, expert, by):
                # An expert that no token of this text chose computes nothing of it.
                assert text.close() is not chosen, (layer, expert)
            faults += chosen
    assert faults > 1


def test_a_rope_that_is_off_by_one_after_the_prompt_is_not(text):
    positions = torch.arange(PROMPT + GENERATED)[None]
    assert text.close(positions=positions)
    # All of them by one is no fault: rotations are relative.
    assert text.close(positions=positions + 1)
    positions[:, PROMPT:] += 1
    assert not text.close(positions=positions)


def test_another_prompt_before_the_same_output_is_not(text):
    turned = torch.cat([text.ids[:, 1:2], text.ids[:, :1], text.ids[:, 2:]], dim=1)
    assert not text.close(ids=turned)
    assert not text.close(ids=text.ids[:, 1:])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lower_precision_is_further_than_float32_rounds(text, dtype):
    with torch.no_grad():
        coarse = type(text.model)(text.model.config).eval()
        coarse.load_state_dict(text.model.state_dict())
        coarse.to(getattr(torch, dtype)).set_experts_implementation("eager")
    found = text.apart(model=coarse)
    assert not closeness.close(found, closeness.BOUNDS["float32"])
