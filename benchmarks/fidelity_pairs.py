"""How far pairs are apart that compute the same in another way, at another precision, or with a planted fault.

    python benchmarks/fidelity_pairs.py --model reference-moe --model smollm2-moe

The reference is float32 with eager experts; in a second table it is the same in bfloat16. Its greedy tokens of each
prompt of the suite are fed to every candidate in one forward pass, whose logits at these positions are compared whole.
A planted fault is repeated in several places (an expert in the first, the middle and the last layer), and the row has
the least of what was found: that is what bounds must tell from another order of the same sums.

A rope that is off by one everywhere changes nothing but rounding, as rotations are relative: the fault is that the
tokens generated stand one further from the prompt than they do.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pytest_infer import prompts
from pytest_infer.analysis.fidelity import closeness, distributions, figures
from pytest_infer.analysis.fidelity.distributions import Distributions
from pytest_infer.analysis.fidelity.figures import Positions, Side
from pytest_infer.engines.base import EngineOptions
from pytest_infer.engines.transformers.engine import TransformersEngine
from pytest_infer.errors import InferError
from pytest_infer.prompts import Prompt
from pytest_infer.records import TOP

SUITE = Path(__file__).parents[1] / "bench" / "prompts.toml"
NAMES = ("guide", "code", "dialogue", "repetition", "non-english")
Ids = list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A prompt's ids, those that the reference went on with, and how far these stand from where they belong."""

    prompt: Ids
    output: Ids
    gap: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What is told of all texts together, and what of mean KL the 64 likeliest tokens of both sides would tell."""

    whole: Positions
    bound: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One row: what the candidate is, and what was found; of faults in several places the one that shows least."""

    name: str
    found: Found


def loaded(model: str, **options: Any) -> TransformersEngine:
    """Return an engine with the model."""
    engine = TransformersEngine(EngineOptions(model=model, threads=1, **options))
    engine.load()
    return engine


@torch.inference_mode()
def greedy(engine: TransformersEngine, prompt: Prompt, tokens: int) -> Text:
    """Return a prompt with what the model goes on with."""
    ids = engine.encode(prompt)
    given = torch.tensor([ids])
    made = engine.running.model.generate(
        given,
        attention_mask=torch.ones_like(given),
        do_sample=False,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        return_dict_in_generate=True,
    )
    return Text(prompt=ids, output=made.sequences[0, len(ids) :].tolist())


@torch.inference_mode()
def read(model: Any, text: Text) -> Side:
    """Return what a model predicts of a text's output."""
    ids = torch.tensor([text.prompt + text.output])
    places = torch.arange(ids.shape[1])
    places[len(text.prompt) :] += text.gap
    logits = model(ids, position_ids=places[None], use_cache=False).logits[0, len(text.prompt) - 1 : -1]
    of = distributions.whole(logits.double().numpy())
    tokens = np.asarray(text.output)
    return Side(tokens=tokens, logprobs=of.logprobs[np.arange(len(tokens)), tokens], of=of)


def compared(references: Sequence[Side], model: Any, texts: Sequence[Text]) -> Found:
    """Return what is told of all texts together."""
    pairs = [(side, read(model, text)) for side, text in zip(references, texts, strict=True)]
    whole = [found for a, b in pairs if (found := figures.positions(a, b)) is not None]
    bounds = [distributions.divergence(stored(a), stored(b)) for a, b in pairs]
    return Found(whole=figures.joined(whole), bound=float(np.concatenate(bounds).mean()))


def stored(side: Side) -> Distributions:
    """Return as much of a side's distributions as a run keeps, in its precision."""
    order = np.argsort(-side.of.logprobs, axis=1, kind="stable")
    known = np.take_along_axis(side.of.logprobs, order, axis=1)
    rest = np.exp(np.logaddexp.reduce(known[:, TOP:], axis=1)).astype(np.float32)
    return distributions.top(
        order[:, :TOP], known[:, :TOP].astype(np.float32), rest, side.tokens, side.logprobs.astype(np.float32)
    )


@contextmanager
def scaled(model: Any, layer: int, expert: int, by: float) -> Iterator[None]:
    """Scale an expert's weights: what it adds grows by more than that, as it holds two products."""
    weights = [
        value[expert]
        for name, value in model.named_parameters()
        if f"layers.{layer}." in name and ".experts." in name and value.dim() == 3
    ]
    if not weights:
        raise InferError(f"no experts in layer {layer}")
    kept = [weight.clone() for weight in weights]
    with torch.no_grad():
        for weight in weights:
            weight.mul_(by)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, before in zip(weights, kept, strict=True):
                weight.copy_(before)


def faults(name: str, references: Sequence[Side], model: Any, texts: Sequence[Text]) -> Iterator[Pair]:
    """Yield what planted faults do to a model that computes as the reference does."""
    layers = model.config.num_hidden_layers
    places = [(layer, expert) for layer in sorted({0, layers // 2, layers - 1}) for expert in (0, 1)]
    if getattr(model.config, "num_local_experts", None):
        for by in (1.01, 1.1, 0.0):
            found = []
            for layer, expert in places:
                with scaled(model, layer, expert, by):
                    found.append(compared(references, model, texts))
            yield Pair(name=f"{name}, an expert × {by:g}", found=min(found, key=lambda one: one.whole.kl_mean))
    shifted = [replace(text, gap=1) for text in texts]
    yield Pair(name=f"{name}, rope off by one", found=compared(references, model, shifted))


def retold(engine: TransformersEngine, suite: Sequence[Prompt], texts: Sequence[Text]) -> list[tuple[int, Text]]:
    """Return the dialogues as a client writes them that knows no template: their last message alone."""
    found = []
    for number, (prompt, text) in enumerate(zip(suite, texts, strict=True)):
        if prompt.messages:
            plain = engine.encode(Prompt(name=prompt.name, text=prompt.messages[-1].content))
            found.append((number, replace(text, prompt=plain)))
    return found


def against(model: str, suite: Sequence[Prompt], tokens: int, dtype: str) -> Iterator[Pair]:
    """Yield every pair whose reference has that dtype."""
    reference = loaded(model, dtype=dtype, **_experts(model, "eager"))
    texts = [greedy(reference, prompt, tokens) for prompt in suite]
    own = reference.running.model
    sides = [read(own, text) for text in texts]
    torch.set_num_threads(2)
    yield Pair(name=f"{dtype}, two threads", found=compared(sides, own, texts))
    torch.set_num_threads(1)
    yield from faults(dtype, sides, own, texts)
    templates = retold(reference, suite, texts)
    if templates:
        found = compared([sides[number] for number, _ in templates], own, [text for _, text in templates])
        yield Pair(name=f"{dtype}, no chat template", found=found)
    reference.close()
    for name, options in _others(model, dtype):
        yield from _candidate(name, model, options, sides, texts)


def _experts(model: str, implementation: str) -> dict[str, str]:
    return {"experts_implementation": implementation} if "moe" in model else {}


def _others(model: str, dtype: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the candidates that are loaded anew."""
    eager = _experts(model, "eager")
    for implementation in ("grouped_mm", "batched_mm") if eager else ():
        yield f"{dtype}, {implementation}", {"dtype": dtype, **_experts(model, implementation)}
    yield f"{dtype}, eager attention", {"dtype": dtype, "attention": "eager", **eager}
    if dtype == "float32":
        yield "bfloat16", {"dtype": "bfloat16", **eager}
        yield "float16", {"dtype": "float16", **eager}
        yield "int8-dynamic", {"dtype": dtype, "quantization": "int8-dynamic", **eager}
        yield "int8", {"dtype": "bfloat16", "quantization": "int8", **eager}


def _candidate(
    name: str, model: str, options: dict[str, str], sides: Sequence[Side], texts: Sequence[Text]
) -> Iterator[Pair]:
    try:
        engine = loaded(model, **options)
    except InferError as error:
        print(f"left out: {name}: {error}")
        return
    yield Pair(name=name, found=compared(sides, engine.running.model, texts))
    engine.close()


def main() -> None:
    """Measure every pair and print a table a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="a bundled model, or a folder (repeat it)")
    parser.add_argument("--tokens", type=int, default=48, help="generated a prompt")
    parser.add_argument(
        "--dtype", action="append", choices=("float32", "float16", "bfloat16"), help="the reference's (repeat it)"
    )
    given = parser.parse_args()
    suite = [prompt for prompt in prompts.load(SUITE) if prompt.name in NAMES]
    for model in given.model or ["reference-moe"]:
        for dtype in given.dtype or ["float32", "bfloat16"]:
            print(f"\n{model}, reference {dtype}, {len(suite)} prompts of {given.tokens} tokens\n")
            print("| candidate | KL, nats | its bound | KL p99 | top-1, % | log-prob. RMS | close |")
            print("|---|---|---|---|---|---|---|")
            for pair in against(model, suite, given.tokens, dtype):
                _print(pair, dtype)


def _print(pair: Pair, dtype: str) -> None:
    one = pair.found.whole
    shares = (f"{one.kl_mean:.1e}", f"{pair.found.bound:.1e}", f"{one.kl_p99:.1e}")
    cells = (pair.name, *shares, f"{one.top1:.1f}", f"{one.logprob_rms:.1e}")
    coarser = next((name for name in ("bfloat16", "float16") if pair.name.startswith(name)), dtype)
    print(
        "| " + " | ".join((*cells, "yes" if closeness.close(one, closeness.BOUNDS[coarser]) else "no")) + " |",
        flush=True,
    )


if __name__ == "__main__":
    main()
