"""Records which experts a model's routers selected, exactly and at next to no cost."""

from __future__ import annotations

import inspect
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from pytest_infer.errors import ExpertCaptureError
from pytest_infer.measure import expert_sites
from pytest_infer.records import ExpertUsage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

# Decode forwards that are counted together: one stack, one add and one index_add_ for all layers of all of them.
_BATCH = 64
_PREFILL, _DECODE = 0, 1
_Rows: TypeAlias = "tuple[tuple[int, ...], ...]"


class ExpertRecorder:
    """Counts the selections of every experts module while text is generated; the output stays bit-identical.

    Hooks on the experts modules keep a reference to the tensor of expert ids, without a kernel, a copy or a device
    synchronisation; they exist only inside `recording`. Costs about 2 microseconds a layer and forward.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        """Find the experts of `module`, whose own forward must be what each generation step calls.

        Raises:
            ExpertCaptureError: it holds experts that cannot be observed (see `expert_sites.find`).

        """
        self._module = module
        self._sites = expert_sites.find(module)
        self._log: _Log | None = None

    @property
    def sites(self) -> tuple[expert_sites.Site, ...]:
        """The experts modules; empty for a dense model, which has no usage."""
        return self._sites

    @contextmanager
    def recording(self, *, prompt_tokens: int) -> Iterator[None]:
        """Record one generation, forgetting the one before. Generation is never disturbed: doubts wait for `usage`.

        `prompt_tokens` is the length of a row of the prompt batch in positions, padding included: what is executed at
        a position below it is prefill, however the prompt is cut into forwards; the rest is decode.

        Raises:
            ExpertCaptureError: the model was compiled meanwhile.

        """
        expert_sites.refuse_compiled(self._module)
        self._log = None
        log = _Log(self._module, self._sites, prompt_tokens)
        with ExitStack() as hooks:
            hooks.enter_context(self._module.register_forward_hook(log.close, with_kwargs=True))
            for number, site in enumerate(self._sites):
                keep = log.keeper(number, site.index_name)
                hooks.enter_context(site.module.register_forward_pre_hook(keep, with_kwargs=True))
            yield
        log.finish()
        self._log = log

    def usage(self, *, prompt_tokens: int, generated_tokens: int, sequences: int = 1) -> ExpertUsage:
        """Return what was recorded, checked against the harness's own numbers of tokens, not the recorder's.

        The last token of a sequence is never fed back, so each site must have selected k x `prompt_tokens` experts in
        prefill and k x (`generated_tokens` - `sequences`) in decode. For a batch all three are sums over its rows,
        without padding. `check` is "passed", or names the first site that differs, what was found and expected.

        Raises:
            ExpertCaptureError: nothing was recorded, a site did not run, or the forwards cannot be told apart.

        """
        if not self._sites:
            raise ExpertCaptureError("the model is dense: it has no experts to record")
        if self._log is None:
            raise ExpertCaptureError("no expert selections were recorded: generate inside recording()")
        top_k, prefill, decode = self._log.result()
        tokens = (prompt_tokens, generated_tokens - sequences)
        return ExpertUsage(
            sites=tuple(site.record(k) for site, k in zip(self._sites, top_k, strict=True)),
            prefill_tokens=tokens[_PREFILL],
            decode_tokens=tokens[_DECODE],
            prefill=prefill,
            decode=decode,
            check=_check([site.name for site in self._sites], top_k, (prefill, decode), tokens),
        )


@dataclass(frozen=True, slots=True)
class _Piece:
    """The columns `begin` to `end` of one forward, all of one phase; `mask` covers the whole forward."""

    phase: int
    index: tuple[torch.Tensor, ...]
    batch: int
    width: int
    begin: int
    end: int
    mask: torch.Tensor | None

    @property
    def shape(self) -> tuple[int, int, int, bool]:
        """What pieces that are counted together have in common."""
        return self.phase, self.batch, self.width, self.mask is None


class _Log:
    """The forwards of one recording: where each begins and ends, what of it is new, and what is wrong with it."""

    def __init__(self, module: torch.nn.Module, sites: Sequence[expert_sites.Site], prompt: int) -> None:
        self._module = module
        self._parameters = tuple(inspect.signature(module.forward).parameters)
        self._sites = sites
        self._prompt = prompt
        self._kept: list[Any] = [None] * len(sites)
        self._pending: list[_Piece] = []
        self._groups: list[_Group] = []
        self._top_k: tuple[int, ...] = ()
        self._counted = 0  # positions 0 to here are counted
        self._problem: str | None = None

    def keeper(self, number: int, index_name: str) -> Callable[..., None]:
        """Return the pre-hook of a site: it keeps the reference, nothing else may happen there."""
        kept = self._kept

        def keep(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if kept[number] is not None:
                self._doubt(f"{self._sites[number].name} ran twice within one forward of the model")
            kept[number] = args[1] if len(args) > 1 else kwargs.get(index_name)

        return keep

    def close(self, _module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _output: object) -> None:
        """End a forward of the model: the hook after it."""
        index = tuple(self._kept)
        self._kept[:] = [None] * len(index)
        if self._problem is not None or not index:
            return
        try:
            self._take(index, dict(zip(self._parameters, args, strict=False)) | kwargs)
        except (ExpertCaptureError, RuntimeError, AttributeError, ValueError) as error:
            # A cache without a length raises the last two, torch the second: generation must not fail for that.
            self._doubt(str(error))

    def finish(self) -> None:
        """Count what is pending and let go of every tensor of the model."""
        try:
            expert_sites.refuse_compiled(self._module)  # generate() may have compiled it just now
            self._flush()
        except (ExpertCaptureError, RuntimeError) as error:
            self._doubt(str(error))
        for site, index in zip(self._sites, self._kept, strict=True):
            if index is not None:
                self._doubt(f"{site.name} ran outside the forward of the model that is recorded")
        self._kept[:] = [None] * len(self._kept)

    def result(self) -> tuple[tuple[int, ...], _Rows, _Rows]:
        """Return k of every site, and the counts of every expert of every site, prefill and decode apart."""
        if self._problem is not None:
            raise ExpertCaptureError(self._problem)
        if not self._groups:
            raise ExpertCaptureError("no forward of the model was seen: does the engine call another module?")
        prefill, decode = (self._rows(phase) for phase in (_PREFILL, _DECODE))
        return self._top_k, prefill, decode

    def _rows(self, phase: int) -> _Rows:
        rows = dict(row for group in self._groups for row in group.rows(phase))
        for number, (below, *counts, above) in rows.items():
            if below or above:
                raise ExpertCaptureError(
                    f"{self._sites[number].name} was given {below + above} expert ids outside "
                    f"0 to {len(counts) - 1}: slots without weights cannot be recorded yet"
                )
        return tuple(tuple(rows[number][1:-1]) for number in range(len(rows)))

    def _doubt(self, problem: str) -> None:
        self._problem = self._problem or problem
        self._pending.clear()

    def _take(self, index: tuple[Any, ...], call: dict[str, Any]) -> None:
        """Queue what is new in a forward: all of it, or without a KV cache its last columns."""
        ids = call.get("input_ids")
        ids = call.get("inputs_embeds") if ids is None else ids
        if ids is None:
            raise ExpertCaptureError("the model was called without input_ids or inputs_embeds: positions are unknown")
        batch, width = ids.shape[:2]
        mask = call.get("attention_mask")
        mask = mask if isinstance(mask, torch.Tensor) and mask.ndim == 2 else None
        start = self._start(call.get("past_key_values"), mask, width)
        self._verify(index, batch * width)
        first, last = self._counted - start, width
        prompt_end = min(max(self._prompt - start, first), last)
        mask = None if mask is None else mask[:, -width:]
        for phase, begin, end in ((_PREFILL, first, prompt_end), (_DECODE, prompt_end, last)):
            if begin < end:
                self._queue(_Piece(phase, index, batch, width, begin, end, mask))
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

    def _verify(self, index: tuple[Any, ...], rows: int) -> None:
        """Raise unless every site got ids for every row, with the k of the first forward."""
        top_k = tuple(site.top_k(ids, rows) for site, ids in zip(self._sites, index, strict=True))
        if not self._groups:
            self._top_k = top_k
            self._groups = _group(self._sites, index)
        if top_k != self._top_k:
            raise ExpertCaptureError(f"the number of experts a token changed from {self._top_k} to {top_k}")

    def _queue(self, piece: _Piece) -> None:
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


class _Group:
    """The counts of sites whose ids can be stacked: a flat row of E + 2 a site, for ids below 0, 0 to E-1, and above.

    The two ends are there because an id beyond a site's experts would otherwise count for the next site.
    """

    def __init__(self, members: Sequence[int], experts: Sequence[int], like: torch.Tensor) -> None:
        self._members = members
        self._experts = experts
        self._k = like.shape[-1]
        self._starts = [sum(experts[:i]) + 2 * i for i in range(len(experts))]
        # Generation may run in inference mode, whose tensors cannot be added to once it is over.
        with torch.inference_mode(mode=False):
            self._counts = torch.zeros(2, sum(experts) + 2 * len(experts), dtype=torch.int64, device=like.device)
            self._low = torch.tensor(-1, device=like.device)
            self._high = torch.tensor(experts, device=like.device).view(-1, 1, 1, 1)
            self._base = torch.tensor(self._starts, device=like.device).view(-1, 1, 1, 1) + 1
            self._one = torch.ones((), dtype=torch.int64, device=like.device)

    def add(self, pieces: Sequence[_Piece]) -> None:
        """Count pieces of the same shape. A wide one is taken site by site: its stack would show in the peak memory."""
        everything = len(self._members)
        step = everything if pieces[0].width == 1 else 1
        with torch.no_grad():
            for first in range(0, everything, step):
                self._add(pieces, slice(first, first + step))

    def rows(self, phase: int) -> Iterator[tuple[int, list[int]]]:
        """Yield the number of each site with its E + 2 counts."""
        flat = self._counts[phase].tolist()
        for number, start, experts in zip(self._members, self._starts, self._experts, strict=True):
            yield number, flat[start : start + experts + 2]

    def _add(self, pieces: Sequence[_Piece], sites: slice) -> None:
        members, piece = self._members[sites], pieces[0]
        stack = torch.stack([one.index[member] for one in pieces for member in members])
        ids = stack.view(len(pieces), len(members), piece.batch, piece.width, self._k)
        ids = ids[:, :, :, piece.begin : piece.end]
        slot = torch.clamp(ids, self._low, self._high[sites]) + self._base[sites]
        weights = self._one.expand(slot.numel())
        if piece.mask is not None:
            masks = [one.mask[:, one.begin : one.end] for one in pieces if one.mask is not None]
            mask = torch.stack(masks).to(slot.device).ne(0).long()
            weights = mask[:, None, :, :, None].expand_as(slot).reshape(-1)
        self._counts[piece.phase].index_add_(0, slot.reshape(-1), weights)


def _group(sites: Sequence[expert_sites.Site], index: Sequence[torch.Tensor]) -> list[_Group]:
    """Group sites by the device and shape of their ids: a split model has several devices, some have several k."""
    keys: dict[object, list[int]] = {}
    for number, tensor in enumerate(index):
        keys.setdefault((tensor.device, tensor.dtype, tensor.shape), []).append(number)
    return [_Group(members, [sites[m].experts for m in members], index[members[0]]) for members in keys.values()]


def _check(names: Sequence[str], top_k: Sequence[int], counts: tuple[_Rows, _Rows], tokens: tuple[int, int]) -> str:
    """Return "passed" when every site's sum is tokens x k in both phases, else the first that is not."""
    for phase, label in ((_PREFILL, "prefill"), (_DECODE, "decode")):
        for name, k, row in zip(names, top_k, counts[phase], strict=True):
            found, expected = sum(row), tokens[phase] * k
            if found != expected:
                hint = "; padding, assisted decoding, an early end?" if found > expected else ""
                return f"{name}: {found} {label} selections, expected {expected} ({tokens[phase]} tokens x {k}){hint}"
    return "passed"
