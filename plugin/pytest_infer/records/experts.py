"""Where the model routes tokens to experts, and which of them were selected."""

from __future__ import annotations

from dataclasses import dataclass


def computes_all(kind: str) -> bool:
    """Return whether a site of this kind computes every expert, whatever is selected."""
    return kind.endswith("-all")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertSite:
    """One place of the model where tokens are routed to experts.

    `slots` counts everything the router can choose; the first `experts` of them have weights (zero-computation slots
    have none). `kind` is "mlp", "attention", or "mlp-all" where every expert is computed whatever is selected.
    `expert_bytes` is the size of one expert's weights. `shared` experts beside them run for every token and are never
    counted as routed; `shared_bytes` is the size of all of them.
    `experts`, `slots` and `k` are 0 where an older run does not say.
    """

    name: str
    layer: int
    kind: str = "mlp"
    experts: int = 0
    slots: int = 0
    k: int = 0
    expert_bytes: int | None = None
    shared: int | None = None
    shared_bytes: int | None = None

    @property
    def routing(self) -> tuple[str, int, int, int, int]:
        """Return what is equal for sites whose selections may be added; their sizes may differ, as by dtype."""
        return self.name, self.layer, self.experts, self.slots, self.k

    @property
    def computes_all(self) -> bool:
        """Return whether every expert is computed, whatever is selected."""
        return computes_all(self.kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertUsage:
    """Selections per site and slot, prefill and decode separate.

    `prefill[i][e]` is how often slot e of `sites[i]` was selected for a prompt token, `decode[i][e]` for a generated
    one; the weights are the sums of the gate weights of those selections, shaped alike. `prefill_dropped[i]` is how
    many selections a site refused for lack of capacity, which no slot counts. `check` is "passed" when every site's
    sum equals tokens x k; otherwise the sums that did not. `note` says why the counts should be read with care.

    `trace[i]` holds the selections of `sites[i]` token by token in order of position, those of the prompt first: an
    array of shape (prefill_tokens + decode_tokens, k) in C order, one byte per selection, or two, little-endian, where
    the site has more than 256 slots. The number `slots` stands for a selection that reached no expert of the site.
    `trace_weights[i]` are the gate weights of those selections, float32, little-endian, shaped alike.
    """

    sites: tuple[ExpertSite, ...]
    prefill_tokens: int
    decode_tokens: int
    prefill: tuple[tuple[int, ...], ...]
    decode: tuple[tuple[int, ...], ...]
    check: str
    prefill_weights: tuple[tuple[float, ...], ...] | None = None
    decode_weights: tuple[tuple[float, ...], ...] | None = None
    prefill_dropped: tuple[int, ...] | None = None
    decode_dropped: tuple[int, ...] | None = None
    trace: tuple[bytes, ...] | None = None
    trace_weights: tuple[bytes, ...] | None = None
    note: str | None = None
