"""Reports on a finished model folder: held-out perplexity, expert usage, speed and greedy samples."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralForCausalLM, PreTrainedTokenizerBase

WINDOW = 1024
NEW_TOKENS = 60
PROMPTS = (
    "The capital of France is",
    "Once upon a time",
    "def add(a, b):",
    "Explain what a neural network is in simple terms.",
)
CHAT_PROMPTS = ("Tell me a story.", "Where is Japan?", "Explain what a neural network is in simple terms.")


def report(folder: Path, *, held_out: Mapping[str, Sequence[str]]) -> None:
    """Load the folder as a user would, and print everything the README states."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{parameters} parameters, {model.dtype}, {sum(f.stat().st_size for f in files)} bytes in all")
    for name, texts in held_out.items():
        _print_perplexity(name, model, tokenizer, texts)
    _print_expert_usage(model, tokenizer, [text for texts in held_out.values() for text in texts])
    _print_samples(model, tokenizer)


def token_losses(model: MixtralForCausalLM, ids: Tensor) -> Tensor:
    """The loss in nats of each token of one row but the first, in windows of up to 1024 tokens."""
    losses = []
    for window in torch.split(ids, WINDOW):
        if len(window) > 1:
            logits = model(input_ids=window[None]).logits[0, :-1]
            losses.append(cross_entropy(logits, window[1:], reduction="none"))
    return torch.cat(losses)


@torch.inference_mode()
def _print_perplexity(
    name: str, model: MixtralForCausalLM, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> None:
    losses = token_losses(model, _ids(tokenizer, texts))
    bits_a_byte = losses.sum().item() / math.log(2) / sum(len(text.encode()) for text in texts)
    loss = losses.mean().item()
    print(f"held-out {name}: {len(losses)} tokens, loss {loss:.3f}, perplexity {math.exp(loss):.2f}")
    print(f"held-out {name}: {bits_a_byte:.3f} bits a byte")


@torch.inference_mode()
def _print_expert_usage(model: MixtralForCausalLM, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
    """Share of all selections that each expert of each layer gets."""
    ids = _ids(tokenizer, texts)
    windows = ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)
    counts = torch.zeros(model.config.num_hidden_layers, model.config.num_local_experts)
    for window in windows:
        routers = model(input_ids=window[None], output_router_logits=True).router_logits
        for layer, logits in enumerate(routers):
            chosen = logits.topk(model.config.num_experts_per_tok, dim=-1).indices
            counts[layer] += chosen.flatten().bincount(minlength=counts.size(1))
    for layer, row in enumerate(counts):
        shares = " ".join(f"{share:.1%}" for share in row / row.sum())
        print(f"layer {layer}: busiest {row.max() / row.mean():.2f}x the mean; {shares}")


def _print_samples(model: MixtralForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    chats = [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
        for text in CHAT_PROMPTS
    ]
    for prompt in (*PROMPTS, *chats):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        started = time.perf_counter()
        output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS)
        new = output[0, ids.size(1) :]
        rate = len(new) / (time.perf_counter() - started)
        print(f"--- {prompt!r} ({rate:.0f} tokens/s)\n{tokenizer.decode(new)}")


def _ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Tensor:
    """All texts as one row of ids, each closed by the end-of-text token."""
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return torch.tensor([token for ids in encoded for token in [*ids, tokenizer.eos_token_id]])
