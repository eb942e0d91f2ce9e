"""A model of next to nothing with another's tokeniser: its prompts can be encoded before its weights are loaded."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from pytest_infer import untrusted
from pytest_infer.engines.checkpoint import gguf_header

_U32, _F32, _STRING = 4, 6, 8
_TOKENIZER = "tokenizer."
_WIDTH, _ALIGNMENT, _F32_TENSOR = 32, 32, 0
_HEADS = {"llama.attention.head_count": 1, "llama.attention.head_count_kv": 1}
_SIZES = {
    "llama.block_count": 1,
    "llama.context_length": 64,
    "llama.embedding_length": _WIDTH,
    "llama.feed_forward_length": _WIDTH,
    **_HEADS,
}


def write(model: Path, path: Path) -> None:
    """Write a GGUF file of one narrow layer of zeros, with the tokeniser and the chat template of `model`."""
    with untrusted.opened(model) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        header = gguf_header.parse(data)
        copied = [data[a:b] for key, (a, b) in header.entries.items() if key.startswith(_TOKENIZER)]
    words = len(header.metadata.get("tokenizer.ggml.tokens", ()))
    entries = [
        _string("general.architecture") + struct.pack("<I", _STRING) + _string("llama"),
        *(_string(key) + struct.pack("<II", _U32, value) for key, value in _SIZES.items()),
        _string("llama.attention.layer_norm_rms_epsilon") + struct.pack("<If", _F32, 1e-5),
        *copied,
    ]
    square = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    tensors = {
        "token_embd.weight": (words, _WIDTH),
        "output_norm.weight": (_WIDTH,),
        "blk.0.attn_norm.weight": (_WIDTH,),
        "blk.0.ffn_norm.weight": (_WIDTH,),
        **{f"blk.0.{name}.weight": (_WIDTH, _WIDTH) for name in square},
    }
    places, end = b"", 0
    for name, shape in tensors.items():
        sizes = b"".join(struct.pack("<Q", size) for size in reversed(shape))
        places += _string(name) + struct.pack("<I", len(shape)) + sizes + struct.pack("<IQ", _F32_TENSOR, end)
        # Rows of 32 floats: every tensor ends where the next may begin.
        end += 4 * _WIDTH * (shape[0] if len(shape) > 1 else 1)
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(entries)) + b"".join(entries) + places
    with path.open("wb") as out:
        out.write(head + bytes(-len(head) % _ALIGNMENT))
        out.truncate(out.tell() + end)


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded
