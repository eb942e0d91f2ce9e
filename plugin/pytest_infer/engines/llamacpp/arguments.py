"""llama.cpp's own arguments, as llama-server takes them, put into the binding's parameters."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from pytest_infer.engines.checkpoint.gguf_header import BLOCKS
from pytest_infer.errors import OptionError

_KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
_OFF, _ON, _AUTO = "off", "on", "auto"
_EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
"""The tensors of routed experts, as llama.cpp's --cpu-moe finds them."""
_NUMBERS = (
    ("n_ctx", 0, "-c", "--ctx-size"),
    ("n_batch", 1, "-b", "--batch-size"),
    ("n_ubatch", 0, "-ub", "--ubatch-size"),
    ("n_gpu_layers", -2, "-ngl", "--gpu-layers", "--n-gpu-layers"),
    ("main_gpu", 0, "-mg", "--main-gpu"),
)
"""Which of llama.cpp's parameters, the least that it takes without ending the process, and how it is spelled."""
_MOST = 2**31 - 1
_FLAGS = (
    ("no_kv_offload", "-nkvo", "--no-kv-offload"),
    ("no_extra_bufts", "-nr", "--no-repack"),
    ("no_op_offload", "--no-op-offload"),
    ("no_host", "--no-host"),
    ("swa_full", "--swa-full"),
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise OptionError(message)


def _from(least: int) -> Callable[[str], int]:
    """Return what reads a whole number that is no less, and that llama.cpp can hold."""

    def number(text: str) -> int:
        if not least <= int(text) <= _MOST:
            raise argparse.ArgumentTypeError(f"from {least} to {_MOST}, not {text}")
        return int(text)

    number.__name__ = "int"  # as argparse calls what is none
    return number


def parser() -> argparse.ArgumentParser:
    """Return a parser of the arguments that decide what is loaded and how it runs."""
    made = _Parser(prog="llama.cpp", add_help=False, allow_abbrev=False)
    for name, least, *spelled in _NUMBERS:
        made.add_argument(*spelled, dest=name, type=_from(least), metavar="N")
    for name, *spelled in _FLAGS:
        made.add_argument(*spelled, dest=name, action="store_true", default=None)
    made.add_argument("-ctk", "--cache-type-k", choices=_KV_TYPES)
    made.add_argument("-ctv", "--cache-type-v", choices=_KV_TYPES)
    made.add_argument("-fa", "--flash-attn", choices=(_ON, _OFF, _AUTO))
    made.add_argument("-tb", "--threads-batch", type=_from(1), metavar="N")
    made.add_argument("-ot", "--override-tensor", action="append", default=[], metavar="REGEX=BUFFER")
    made.add_argument("-cmoe", "--cpu-moe", action="store_true")
    made.add_argument("-ncmoe", "--n-cpu-moe", type=_from(0), default=0, metavar="N")
    made.add_argument("--mmap", dest="mmap", action="store_true", default=None)
    made.add_argument("--no-mmap", dest="mmap", action="store_false")
    made.add_argument("--mlock", action="store_true")
    made.add_argument("--numa", choices=("distribute", "isolate", "numactl"))
    return made


def parse(text: str | None) -> argparse.Namespace:
    """Return what `text` asks for, split as a shell splits it.

    Raises:
        OptionError: an argument that is not known here, or a value that it does not take.
    """
    try:
        return parser().parse_args(shlex.split(text or ""))
    except (OptionError, ValueError) as error:
        said = str(error).replace("unrecognized arguments: ", "not known here: ")
        raise OptionError(f"--infer-engine-args {text!r}: {said}; known: {known()}") from error


def known() -> str:
    """Return the arguments, each in its shorter spelling."""
    return ", ".join(action.option_strings[0] for action in parser()._actions if action.option_strings)


def apply(given: argparse.Namespace, params: Any, binding: Any) -> None:
    """Put what was given into `params`, a CommonParams of the module `binding`.

    Raises:
        OptionError: a GPU or a buffer type that llama.cpp does not find on this machine.
    """
    if (given.n_gpu_layers or 0) > 0 and not devices(binding):
        raise OptionError(
            f"-ngl {given.n_gpu_layers}: llama.cpp finds no GPU here, or was built without a backend for it: "
            "nothing would be placed"
        )
    for name in (*(n for n, *_ in _NUMBERS), *(n for n, *_ in _FLAGS)):
        if (value := getattr(given, name)) is not None:
            setattr(params, name, value)
    for name in ("cache_type_k", "cache_type_v"):
        if (kind := getattr(given, name)) is not None:
            setattr(params, name, getattr(binding.ggml_type, f"GGML_TYPE_{kind.upper()}"))
    if given.flash_attn is not None:
        state = {_ON: "ENABLED", _OFF: "DISABLED", _AUTO: "AUTO"}[given.flash_attn]
        params.flash_attn_type = getattr(binding.llama_flash_attn_type, f"LLAMA_FLASH_ATTN_TYPE_{state}")
    if given.numa is not None:
        params.numa = getattr(binding.ggml_numa_strategy, f"GGML_NUMA_STRATEGY_{given.numa.upper()}")
    if given.mmap is not None or given.mlock:
        kind = {(False, False): "NONE", (False, True): "MLOCK", (True, False): "MMAP", (True, True): "MMAP_MLOCK"}
        chosen = kind[given.mmap is not False, given.mlock]
        params.load_mode = getattr(binding.llama_load_mode, f"LLAMA_LOAD_MODE_{chosen}")
    placed = overrides(given)
    if placed:
        _check_buffers(placed, ["CPU", *devices(binding)])
        params.tensor_buft_overrides = ",".join(placed)


def _check_buffers(placed: Sequence[str], known: Sequence[str]) -> None:
    for one in placed:
        regex, equals, buffer = one.rpartition("=")
        if not (regex and equals) or buffer not in known:
            raise OptionError(f"-ot {one}: takes REGEX=BUFFER; buffers of this machine: {', '.join(known)}")


def overrides(given: argparse.Namespace) -> list[str]:
    """Return which tensors lie where, REGEX=BUFFER each: those of -ot, then those of experts that stay on the CPU."""
    layers = [rf"blk\.{number}{_EXPERTS}" for number in range(given.n_cpu_moe)]
    own = [one for group in given.override_tensor for one in group.split(",")]
    return [*own, *(f"{found}=CPU" for found in ([_EXPERTS] if given.cpu_moe else layers))]


def devices(binding: Any) -> list[str]:
    """Return the names of the GPUs that llama.cpp can place layers on; a library for the CPU (BLAS) is none."""
    kinds = binding.ggml_backend_dev_type
    gpus = (kinds.GGML_BACKEND_DEVICE_TYPE_GPU, kinds.GGML_BACKEND_DEVICE_TYPE_IGPU)
    return [str(one["name"]) for one in binding.get_device_info() if one["type"] in gpus]


def bytes_of(kind: str | None, elements: int) -> int:
    """Return the bytes of so many elements of a row of the KV cache, in a type as -ctk names it; by default f16."""
    sizes = {name.lower(): (weights, held) for name, weights, held in BLOCKS.values()}
    weights, held = sizes[kind or "f16"]
    return elements // weights * held


def served(arguments: Sequence[str]) -> argparse.Namespace:
    """Return what `python -m pytest_infer.engines.llamacpp` is asked for: these arguments, and those of a server."""
    server = argparse.ArgumentParser(
        prog="python -m pytest_infer.engines.llamacpp",
        parents=[parser()],
        allow_abbrev=False,
        description="llama-server of the package xllamacpp, until it is interrupted.",
    )
    server.add_argument("-m", "--model", required=True, metavar="FILE.gguf")
    server.add_argument("-a", "--alias")
    server.add_argument("--host", default="127.0.0.1")
    server.add_argument("--port", type=int, default=8080)
    server.add_argument("-t", "--threads", type=int, metavar="N")
    server.add_argument("-np", "--parallel", type=int, default=1, metavar="N")
    server.add_argument("--metrics", action="store_true")
    server.add_argument("--no-warmup", action="store_true")
    return server.parse_args(arguments)
