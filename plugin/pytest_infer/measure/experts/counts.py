"""Counts expert ids on the device, many forwards at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_infer.measure.experts.taps import Site

PREFILL, DECODE = 0, 1
_ONE_BYTE = 256


@dataclass(frozen=True, slots=True)
class Piece:
    """The columns `begin` to `end` of one forward, all of one phase; `mask` covers the whole forward.

    `index` and `weights` are what each site selected, of `batch` x `width` rows of k.
    """

    phase: int
    index: tuple[torch.Tensor, ...]
    weights: tuple[torch.Tensor | None, ...]
    batch: int
    width: int
    begin: int
    end: int
    mask: torch.Tensor | None

    @property
    def shape(self) -> tuple[int, int, int, bool]:
        """What pieces that are counted together have in common."""
        return self.phase, self.batch, self.width, self.mask is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """What one site selected in one phase. `missed` are ids of -1, `beyond` those outside the slots."""

    counts: tuple[int, ...]
    weights: tuple[float, ...] | None
    missed: int
    beyond: int


class SiteGroup:
    """The counts of sites whose ids can be stacked: a flat row of S + 2 a site, for ids below 0, 0 to S-1, and above.

    The two ends are there because an id beyond a site's slots would otherwise count for the next site.
    """

    def __init__(self, numbers: Sequence[int], sites: Sequence[Site], first: Piece, *, trace: bool) -> None:
        like, weight = first.index[numbers[0]], first.weights[numbers[0]]
        self._numbers = numbers
        self._slots = [site.slots for site in sites]
        self._k = like.shape[-1]
        self._starts = [sum(self._slots[:i]) + 2 * i for i in range(len(sites))]
        self._small = torch.int16 if max(self._slots) < torch.iinfo(torch.int16).max else torch.int32
        size, device = sum(self._slots) + 2 * len(sites), like.device
        self._trace: list[list[torch.Tensor]] | None = [[] for _ in sites] if trace else None
        self._gates: list[list[torch.Tensor]] | None = [[] for _ in sites] if trace and weight is not None else None
        # Generation may run in inference mode, whose tensors cannot be added to once it is over.
        with torch.inference_mode(mode=False):
            self._counts = torch.zeros(2, size, dtype=torch.int64, device=device)
            self._low = torch.tensor(-1, device=device)
            self._high = torch.tensor(self._slots, device=device).view(-1, 1, 1, 1)
            self._base = torch.tensor(self._starts, device=device).view(-1, 1, 1, 1) + 1
            self._one = torch.ones((), dtype=torch.int64, device=device)
            exact = torch.float32 if device.type == "mps" else torch.float64  # Metal has no float64
            self._weights = None if weight is None else torch.zeros(2, size, dtype=exact, device=device)

    def add(self, pieces: Sequence[Piece]) -> None:
        """Count pieces of the same shape. A wide one is taken site by site: its stack would show in the peak memory."""
        everything = len(self._numbers)
        step = everything if pieces[0].width == 1 else 1
        with torch.no_grad():
            for first in range(0, everything, step):
                self._add(pieces, slice(first, first + step))

    def results(self, phase: int) -> Iterator[tuple[int, Counted]]:
        """Yield the number of each site with what it selected; this waits for the device."""
        flat = self._counts[phase].tolist()
        sums = None if self._weights is None else self._weights[phase].tolist()
        for number, start, slots in zip(self._numbers, self._starts, self._slots, strict=True):
            below, *counts, above = flat[start : start + slots + 2]
            yield (
                number,
                Counted(
                    counts=tuple(counts),
                    weights=None if sums is None else tuple(sums[start + 1 : start + slots + 1]),
                    missed=below,
                    beyond=above,
                ),
            )

    def traces(self) -> Iterator[tuple[int, bytes]]:
        """Yield the number of each site with its selections token by token, as `records.ExpertUsage` says."""
        for number, slots, parts in zip(self._numbers, self._slots, self._trace or (), strict=True):
            selected = torch.cat(parts).cpu()
            # Where a site has 256 slots and more, the number that stands for "none of them" needs a second byte too.
            largest = int(selected.max()) if selected.numel() else 0
            wide = slots > _ONE_BYTE or largest >= _ONE_BYTE
            yield number, selected.numpy().astype("<u2" if wide else "<u1").tobytes()

    def gates(self) -> Iterator[tuple[int, bytes]]:
        """Yield the number of each site with the gate weights of its trace; nothing where it has none."""
        for number, parts in zip(self._numbers, self._gates or (), strict=bool(self._gates)):
            yield number, torch.cat(parts).cpu().numpy().astype("<f4").tobytes()

    def _add(self, pieces: Sequence[Piece], sites: slice) -> None:
        members, piece = self._numbers[sites], pieces[0]
        ids = self._columns([one.index[member] for one in pieces for member in members], pieces, len(members))
        slot = torch.clamp(ids, self._low, self._high[sites])
        if self._trace is not None:
            self._keep(self._trace, torch.where(slot < 0, self._high[sites], slot).to(self._small), sites)
        slot = (slot + self._base[sites]).reshape(-1)
        mask = None
        if piece.mask is not None:
            masks = [one.mask[:, one.begin : one.end] for one in pieces if one.mask is not None]
            mask = torch.stack(masks).to(slot.device).ne(0)[:, None, :, :, None].expand(ids.shape).reshape(-1)
        ones = self._one.expand(slot.numel()) if mask is None else mask.long()
        self._counts[piece.phase].index_add_(0, slot, ones)
        if self._weights is not None:
            given = [weight for one in pieces for member in members if (weight := one.weights[member]) is not None]
            gates = self._columns(given, pieces, len(members))
            if self._gates is not None:
                self._keep(self._gates, gates.float(), sites)
            gates = gates.reshape(-1).to(self._weights.dtype)
            self._weights[piece.phase].index_add_(0, slot, gates if mask is None else gates * mask)

    def _columns(self, tensors: list[torch.Tensor], pieces: Sequence[Piece], members: int) -> torch.Tensor:
        """Stack what is given per piece and site, and cut out the columns that count: (pieces, sites, batch, n, k)."""
        piece = pieces[0]
        stack = torch.stack(tensors).view(len(pieces), members, piece.batch, piece.width, self._k)
        return stack[:, :, :, piece.begin : piece.end]

    def _keep(self, kept: list[list[torch.Tensor]], found: torch.Tensor, sites: slice) -> None:
        """Append what belongs to each site, in order of position, on the device."""
        for parts, one in zip(kept[sites], found.transpose(0, 1), strict=True):
            parts.append(one.reshape(-1, self._k))


def grouped(sites: Sequence[Site], first: Piece, *, trace: bool) -> list[SiteGroup]:
    """Group sites by the device and shape of their ids: a split model has several devices, some have several k."""
    keys: dict[object, list[int]] = {}
    for number, (index, weight) in enumerate(zip(first.index, first.weights, strict=True)):
        shape = None if weight is None else (weight.dtype, weight.device)
        keys.setdefault((index.device, index.dtype, index.shape, shape), []).append(number)
    return [SiteGroup(numbers, [sites[n] for n in numbers], first, trace=trace) for numbers in keys.values()]
