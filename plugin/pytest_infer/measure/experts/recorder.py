"""Records which experts a model's routers selected, exactly and at almost no cost."""

from __future__ import annotations

import inspect
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from pytest_infer import untrusted
from pytest_infer.errors import ExpertCaptureError
from pytest_infer.measure.experts import sites as expert_sites
from pytest_infer.measure.experts.counts import DECODE, PREFILL, Counted, Piece, SiteGroup, grouped
from pytest_infer.records import ExpertUsage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pytest_infer.measure.experts.taps import Site

# Decode forwards that are counted together: one stack, one add and one index_add_ for all layers of all of them.
_BATCH = 64
_LABELS = ((PREFILL, "prefill"), (DECODE, "decode"))
_Phases: TypeAlias = "tuple[tuple[Counted, ...], tuple[Counted, ...]]"


class ExpertRecorder:
    """Counts the selections of every experts module while text is generated; the output stays bit-identical.

    Hooks on the experts modules keep references to the tensors of expert ids and gate weights, without a kernel, a
    copy or a device synchronisation; they exist only inside `recording`. Costs some microseconds per layer and forward.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        """Find the experts of `module`, whose own forward must be what each generation step calls.

        Raises:
            ExpertCaptureError: it holds experts that cannot be observed (see `expert_sites.find`).

        """
        self._module = module
        self._sites = expert_sites.find(module)
        self._towers = expert_sites.towers(module) if self._sites else ()
        self._log: _Log | None = None

    @property
    def sites(self) -> tuple[Site, ...]:
        """The places that route to experts; empty for a dense model, which has no usage."""
        return self._sites

    @contextmanager
    def recording(self, *, prompt_tokens: int, trace: bool = False) -> Iterator[None]:
        """Record one generation, forgetting the one before. Generation is never disturbed: `usage` raises.

        `prompt_tokens` is the length of a row of the prompt batch in positions, padding included: what is executed at
        a position below it is prefill, however the prompt is cut into forwards; the rest is decode. `trace` keeps each
        token's selections too, of a single sequence without padding.

        Raises:
            ExpertCaptureError: the model was compiled meanwhile.

        """
        expert_sites.refuse_compiled(self._module)
        self._log = None
        log = _Log(self._module, self._sites, prompt_tokens, trace=trace)
        with ExitStack() as hooks:
            hooks.enter_context(self._module.register_forward_hook(log.close, with_kwargs=True))
            for number, site in enumerate(self._sites):
                for hook in site.tap.attach(log.keeper(number)):
                    hooks.enter_context(hook)
            for name, tower in self._towers:
                hooks.enter_context(tower.register_forward_pre_hook(log.tripwire(name)))
            yield
        log.finish()
        self._log = log

    def usage(self, *, prompt_tokens: int, generated_tokens: int, sequences: int = 1) -> ExpertUsage:
        """Return what was recorded, checked against the harness's own numbers of tokens, not the recorder's.

        The last token of a sequence is never fed back, so each site must have selected k x `prompt_tokens` experts in
        prefill and k x (`generated_tokens` - `sequences`) in decode, dropped ones included. For a batch all three are
        sums over its rows, without padding. `check` is "passed", or names the first site that differs, what was found
        and expected; there is then no trace. Sites for images, which no row of a text reaches, are left out.

        Raises:
            ExpertCaptureError: nothing was recorded, a site did not run, or the forwards cannot be distinguished.

        """
        if not self._sites:
            raise ExpertCaptureError("the model is dense: it has no experts to record")
        if self._log is None:
            raise ExpertCaptureError("no expert selections were recorded: generate inside recording()")
        top_k, phases, (traces, gates) = self._log.result()
        tokens = (prompt_tokens, generated_tokens - sequences)
        check = _check([site.name for site in self._sites], top_k, phases, tokens)
        used = [
            number
            for number, site in enumerate(self._sites)
            if site.misses != "elsewhere" or any(any(phase[number].counts) for phase in phases)
        ]
        drops = [site.misses == "dropped" for site in self._sites]
        prefill, decode = (tuple(phase[number] for number in used) for phase in phases)
        return ExpertUsage(
            sites=tuple(self._sites[number].record(top_k[number]) for number in used),
            prefill_tokens=tokens[PREFILL],
            decode_tokens=tokens[DECODE],
            prefill=tuple(one.counts for one in prefill),
            decode=tuple(one.counts for one in decode),
            check=check,
            prefill_weights=_weights(prefill),
            decode_weights=_weights(decode),
            prefill_dropped=tuple(one.missed for one in prefill) if any(drops) else None,
            decode_dropped=tuple(one.missed for one in decode) if any(drops) else None,
            trace=tuple(traces[number] for number in used) if traces and check == "passed" else None,
            trace_weights=tuple(gates[number] for number in used)
            if check == "passed" and set(used) <= set(gates)
            else None,
            note=expert_sites.note(self._module),
        )


class _Log:
    """The forwards of one recording: where each begins and ends, which positions are new, and what is wrong with it."""

    def __init__(self, module: torch.nn.Module, sites: Sequence[Site], prompt: int, *, trace: bool) -> None:
        self._module = module
        self._parameters = tuple(inspect.signature(module.forward).parameters)
        self._sites = sites
        self._prompt = prompt
        self._trace = trace
        self._captured: list[Any] = [None] * len(sites)
        self._pending: list[Piece] = []
        self._groups: list[SiteGroup] = []
        self._top_k: tuple[int, ...] = ()
        self._counted = 0  # positions 0 to here are counted
        self._problem: str | None = None

    def keeper(self, number: int) -> Callable[[object], None]:
        """Return what takes a site's selections: it keeps the reference, nothing else may happen there."""
        captured = self._captured

        def keep(selected: object) -> None:
            if captured[number] is not None:
                self._doubt(f"{self._sites[number].name} ran twice within one forward of the model")
            captured[number] = selected

        return keep

    def tripwire(self, name: str) -> Callable[..., None]:
        """Return the pre-hook of experts that must not run on text."""
        return lambda _module, _args: self._doubt(f"{name} ran: images and sound cannot be recorded, only text")

    def close(self, _module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _output: object) -> None:
        """End a forward of the model: the hook after it."""
        captured = tuple(self._captured)
        self._captured[:] = [None] * len(captured)
        if self._problem is not None or not captured:
            return
        try:
            self._take(captured, dict(zip(self._parameters, args, strict=False)) | kwargs)
        except Exception as error:  # noqa: BLE001
            # From torch, a cache without a length, a module that is called otherwise: generation must not fail for it.
            self._doubt(untrusted.reason(error))

    def finish(self) -> None:
        """Count what is pending and let go of every tensor of the model."""
        try:
            expert_sites.refuse_compiled(self._module)  # generate() may have compiled it just now
            self._flush()
        except Exception as error:  # noqa: BLE001 - as above
            self._doubt(untrusted.reason(error))
        for site, index in zip(self._sites, self._captured, strict=True):
            if index is not None:
                self._doubt(f"{site.name} ran outside the forward of the model that is recorded")
        self._captured[:] = [None] * len(self._captured)

    def result(self) -> tuple[tuple[int, ...], _Phases, tuple[dict[int, bytes], dict[int, bytes]]]:
        """Return k of every site, what it selected in prefill and decode, and its trace and gates if there are any."""
        if self._problem is not None:
            raise ExpertCaptureError(self._problem)
        if not self._groups:
            raise ExpertCaptureError("no forward of the model was seen: does the engine call another module?")
        phases = (self._counted_in(PREFILL), self._counted_in(DECODE))
        traces = dict(one for group in self._groups for one in group.traces()) if self._trace else {}
        gates = dict(one for group in self._groups for one in group.gates()) if self._trace else {}
        return self._top_k, phases, (traces, gates)

    def _counted_in(self, phase: int) -> tuple[Counted, ...]:
        found = dict(one for group in self._groups for one in group.results(phase))
        for number, one in found.items():
            site = self._sites[number]
            outside = one.beyond + (one.missed if site.misses is None else 0)
            if outside:
                raise ExpertCaptureError(f"{site.name} was given {outside} expert ids outside 0 to {site.slots - 1}")
        return tuple(found[number] for number in range(len(found)))

    def _doubt(self, problem: str) -> None:
        self._problem = self._problem or problem
        self._pending.clear()

    def _take(self, captured: tuple[object, ...], call: dict[str, Any]) -> None:
        """Queue what is new in a forward: all of it, or without a KV cache its last columns."""
        ids = call.get("input_ids")
        ids = call.get("inputs_embeds") if ids is None else ids
        if ids is None:
            raise ExpertCaptureError("the model was called without input_ids or inputs_embeds: positions are unknown")
        batch, width = ids.shape[:2]
        mask = call.get("attention_mask")
        mask = mask if isinstance(mask, torch.Tensor) and mask.ndim == 2 else None
        # Up to transformers 5.23 a forward calls it past_key_values.
        start = self._start(call.get("cache", call.get("past_key_values")), mask, width)
        if self._trace and (batch > 1 or (mask is not None and not self._counted and width > 1 and not mask.all())):
            raise ExpertCaptureError("a trace is of one sequence without padding: record the counts of a batch only")
        read = [site.read(one, batch * width) for site, one in zip(self._sites, captured, strict=True)]
        index, weights = tuple(ids for ids, _ in read), tuple(gates for _, gates in read)
        first, last = self._counted - start, width
        prompt_end = min(max(self._prompt - start, first), last)
        mask = None if mask is None else mask[:, -width:]
        for phase, begin, end in ((PREFILL, first, prompt_end), (DECODE, prompt_end, last)):
            if begin < end:
                self._queue(Piece(phase, index, weights, batch, width, begin, end, mask))
        self._counted = start + width

    def _start(self, cache: Any, mask: torch.Tensor | None, width: int) -> int:
        """Return the absolute position of a forward's first column, from shapes only: no synchronisation."""
        if mask is not None:
            start = mask.shape[1] - width
        elif cache is None:
            start = 0
        else:
            # The forward is over, so the cache holds it. A static one keeps its length on the device: read that once.
            length = cache.get_seq_length()
            start = int(length) - width if isinstance(length, int) or not self._counted else self._counted
        if start > self._counted:
            raise ExpertCaptureError(
                f"a forward began at position {start}, but only {self._counted} were recorded: "
                "a reused prefix of the KV cache runs no experts"
            )
        # Without a KV cache every step recomputes the text from position 0 and adds to it.
        if start + width <= self._counted or (start < self._counted and (start > 0 or cache is not None)):
            raise ExpertCaptureError(
                f"a forward went back to position {start} after {self._counted} were recorded: record one generation, "
                "without assisted decoding or prompt lookup, whose rejected drafts run experts too"
            )
        return start

    def _queue(self, piece: Piece) -> None:
        top_k = tuple(ids.shape[-1] for ids in piece.index)
        if not self._groups:
            self._top_k = top_k
            self._groups = grouped(self._sites, piece, trace=self._trace)
        if top_k != self._top_k:
            raise ExpertCaptureError(f"the number of experts a token changed from {self._top_k} to {top_k}")
        if self._pending and (len(self._pending) == _BATCH or self._pending[0].shape != piece.shape):
            self._flush()
        self._pending.append(piece)
        if piece.width > 1:  # a prompt's ids are not kept longer than its forward: they are large
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            for group in self._groups:
                group.add(self._pending)
            self._pending.clear()


def _weights(rows: Sequence[Counted]) -> tuple[tuple[float, ...], ...] | None:
    """Return the sums of gate weights, or None unless every site has them."""
    known = tuple(one.weights for one in rows if one.weights is not None)
    return known if len(known) == len(rows) else None


def _check(names: Sequence[str], top_k: Sequence[int], phases: _Phases, tokens: tuple[int, int]) -> str:
    """Return "passed" when every site's sum is tokens x k in both phases, else the first that is not."""
    for phase, label in _LABELS:
        for name, k, one in zip(names, top_k, phases[phase], strict=True):
            found, expected = sum(one.counts) + one.missed, tokens[phase] * k
            if found != expected:
                hint = "; padding, assisted decoding, an early end?" if found > expected else ""
                return f"{name}: {found} {label} selections, expected {expected} ({tokens[phase]} tokens x {k}){hint}"
    return "passed"
