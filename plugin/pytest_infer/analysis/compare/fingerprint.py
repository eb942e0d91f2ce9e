"""What two measurements must share to be comparable: machine, software, model, workload, and the output."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from pytest_infer.engines.base import QUANTIZATIONS
from pytest_infer.errors import OptionError, alternatives
from pytest_infer.storage.runs import Row
from pytest_infer.storage.schema import Model
from pytest_infer.units import size

OUTPUT = "output"
WATCHED = "instrumented"
OF_SIDES = ("workload", OUTPUT, WATCHED)
"""The kinds of differences that matter between the sides of one run: what is compared there are the sides."""
SCHEDULING = (
    *("nice", "policy", "cpu_weight", "cpu_shares", "memory_nodes", "memory_policy", "turbo", "energy_preference"),
)
"""What the system grants a process, as `measure/machine/scheduling.py` finds it."""
CARD = ("driver", "power_limit", "card_clocks", "ecc")
"""The state of the cards, as `measure/machine/cards.py` finds it."""
_RESERVED = 0.02
_ASKED = ("prompt", "limits")


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that must be equal; `kind` groups facts, and both names are accepted by --allow-different.

    A number may be off by the share `tolerance` of the larger one; `alike` says which other values are no difference.
    """

    key: str
    kind: str
    read: Callable[[Row], object]
    tolerance: float = 0.0
    show: Callable[[Any], str] | None = None
    alike: Callable[[Any, Any], bool] | None = None

    def differ(self, before: object, after: object) -> bool:
        """Return whether two values are different; one that is not known is not."""
        if before is None or after is None or before == after or (self.alike is not None and self.alike(before, after)):
            return False
        if isinstance(before, (int, float)) and isinstance(after, (int, float)):
            return abs(before - after) > self.tolerance * max(abs(before), abs(after))
        return True

    def text(self, value: object) -> str:
        """Return a value for people."""
        return self.show(value) if self.show is not None else _short(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """A fact in which two rows differ."""

    key: str
    kind: str
    before: str
    after: str

    def __str__(self) -> str:
        """Return it for people: `torch 2.12.0 → 2.13.0`."""
        return f"{self.key} {self.before} → {self.after}"


def _machine(key: str) -> Callable[[Row], object]:
    return lambda row: getattr(row.machine, key)


def _model(key: str) -> Callable[[Row], object]:
    return lambda row: getattr(row.model, key)


def _unless_none(key: str) -> Callable[[Row], object]:
    """Read what a model has only where it was asked for: without it, "none" is known."""
    return lambda row: (getattr(row.model, key) or "none") if row.model != Model() else None


def _stored_quantized(row: Row) -> bool:
    """Return whether transformers found the weights quantised, which older runs do not name, and count otherwise.

    Such models are told apart by the hash of their weights and by their bytes.
    """
    return row.model.engine == "transformers" and row.model.quantization not in (None, *QUANTIZATIONS)


def _quantization(row: Row) -> object:
    return None if _stored_quantized(row) else _unless_none("quantization")(row)


def _parameters(row: Row) -> object:
    return None if _stored_quantized(row) else row.model.parameters


_OF_WEIGHTS = ("weights_sha256", "parameters", "parameter_bytes", "dtype")


def _served(row: Row) -> object:
    """Return the name of a model on a server that tells nothing of its weights, which alone says which it is."""
    told = any(getattr(row.model, key) is not None for key in _OF_WEIGHTS)
    return row.model.name if row.served and not told else None


def _one_name(before: str, after: str) -> bool:
    """Return whether one is the other without its owner or folder, as older versions stored all and some servers do."""
    return any("/" not in short and long.endswith(f"/{short}") for short, long in ((before, after), (after, before)))


def _ranks(row: Row) -> object:
    if row.model == Model():
        return None
    return 1 if row.ranks is None else row.ranks.size


def _version(key: str) -> Callable[[Row], object]:
    return lambda row: (row.model.versions or {}).get(key)


def _kernel(row: Row) -> object:
    release = row.machine.kernel
    return None if release is None else ".".join(release.split(".")[:2])


def _metric(key: str) -> Callable[[Row], object]:
    return lambda row: row.metrics[key].value if key in row.metrics else None


def _scheduling(name: str) -> Callable[[Row], object]:
    return lambda row: (row.machine.scheduling or {}).get(name)


def _of_card(name: str) -> Callable[[Row], object]:
    """Read a setting of the cards where the model is on one: nothing else is faster or slower by it."""
    return lambda row: (row.machine.card_settings or {}).get(name) if _on_card(row) else None


def _on_card(row: Row) -> bool:
    """Return whether a model is on a card: `cuda:0`, and `CUDA0` as llama.cpp says."""
    return "cuda" in (row.model.device or "").lower()


def _instrumented(row: Row) -> object:
    tools = row.machine.instrumented
    return None if tools is None else ", ".join(tools) or "nothing"


def _generation(row: Row) -> object:
    return _flat(row.model.generation)


def _limits(row: Row) -> object:
    limits = row.prompt.limits
    return None if limits is None else _flat(msgspec.to_builtins(limits))


def _flat(table: Mapping[str, object] | None) -> str | None:
    if table is None:
        return None
    return ", ".join(f"{key}={table[key]}" for key in sorted(table)) or "none"


def _output(row: Row) -> object:
    """Return what the timed rounds generated: where they followed a reference its tokens, whatever free ones are."""
    followed = row.reference
    return followed.sha256 if followed is not None and followed.timed else _metric("output_sha256")(row)


FACTS: tuple[Fact, ...] = (
    Fact("cpu", "machine", _machine("cpu")),
    Fact("usable_cores", "machine", _machine("usable_cores")),
    # Machines of one kind differ by what firmware and kernel reserve.
    Fact("memory", "machine", _machine("memory_bytes"), _RESERVED, size),
    Fact("memory_limit", "machine", _machine("memory_limit_bytes"), _RESERVED, size),
    Fact("system", "machine", _machine("system")),
    Fact("architecture", "machine", _machine("architecture")),
    Fact("kernel", "machine", _kernel),
    Fact("virtualization", "machine", _machine("virtualization")),
    Fact("governor", "machine", _machine("governor")),
    Fact("huge_pages", "machine", _machine("huge_pages")),
    *(Fact(name, "machine", _scheduling(name)) for name in SCHEDULING),
    Fact("accelerators", "machine", _machine("accelerators")),
    *(Fact(name, "machine", _of_card(name)) for name in CARD),
    Fact("python", "software", _machine("python")),
    Fact("torch", "software", _version("torch")),
    Fact("transformers", "software", _version("transformers")),
    Fact("xllamacpp", "software", _version("xllamacpp")),
    Fact("environment", "software", lambda row: _flat(row.machine.environment)),
    Fact(WATCHED, WATCHED, _instrumented),
    Fact("engine", "software", _model("engine")),
    Fact("threads", "software", _model("threads")),
    Fact("ranks", "software", _ranks),
    Fact("attention", "software", _model("attention")),
    Fact("experts_implementation", "software", _model("experts_implementation")),
    Fact("engine_args", "software", _unless_none("engine_args")),
    Fact("remote_code", "software", _unless_none("remote_code")),
    Fact("weights", "model", _model("weights_sha256")),
    Fact("served_model", "model", _served, alike=_one_name),
    Fact("parameters", "model", _parameters),
    Fact("parameter_bytes", "model", _model("parameter_bytes")),
    Fact("dtype", "model", _model("dtype")),
    Fact("quantization", "model", _quantization),
    Fact("device", "model", _model("device")),
    Fact("prompt", "workload", lambda row: row.prompt.content_sha256),
    Fact("prompt_tokens", "workload", _metric("prompt_tokens")),
    Fact("limits", "workload", _limits),
    Fact("generation", "workload", _generation),
    Fact(OUTPUT, OUTPUT, _output),
)
KINDS = tuple(dict.fromkeys(fact.kind for fact in FACTS))


def check_allowed(allowed: Collection[str], option: str = "--allow-different") -> None:
    """Raise OptionError for a name of this option that is neither a fact nor a kind of facts."""
    known = {*KINDS, *(fact.key for fact in FACTS)}
    for name in allowed:
        if name not in known:
            raise OptionError(f"{option}: {alternatives('key', name, known)}")


def differences(before: Row, after: Row, allowed: Collection[str] = ()) -> tuple[Mismatch, ...]:
    """Return in what two rows differ that matters; a fact that one of them does not know is no difference."""
    if before.plain or after.plain:
        return ()
    found = []
    for fact in FACTS:
        a, b = fact.read(before), fact.read(after)
        if fact.differ(a, b) and fact.key not in allowed and fact.kind not in allowed:
            found.append(Mismatch(key=fact.key, kind=fact.kind, before=fact.text(a), after=fact.text(b)))
    return tuple(found)


def other_work(before: Row, after: Row, allowed: Collection[str] = ()) -> str | None:
    """Return in what that was asked of two rows differs, a text or its limits, for people; None where nothing does."""
    found = [str(d) for d in differences(before, after, allowed) if d.key in _ASKED]
    return "differ: " + ", ".join(found) if found else None


def facts(row: Row) -> list[object]:
    """Return what must be equal, in the order of FACTS."""
    return [fact.read(row) for fact in FACTS]


def alike(before: Sequence[object], after: Sequence[object]) -> bool:
    """Return whether two rows with these facts differ in nothing that matters."""
    return before == after or not any(fact.differ(a, b) for fact, a, b in zip(FACTS, before, after, strict=True))


def sides_differ(before: Row, after: Row, allowed: Collection[str] = ()) -> tuple[Mismatch, ...]:
    """Return in what two sides of one run differ that matters: what is compared are the sides, so only other work."""
    found = differences(before, after, allowed)
    return tuple(d for d in found if d.kind in OF_SIDES)


def _short(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text[:8] if len(text) == 64 and text.isalnum() else text
