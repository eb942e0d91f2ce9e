"""The suite's hottest and coldest experts in a few lines, for the end of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.text import Text

from pytest_infer.metrics import experts
from pytest_infer.metrics.experts import ExpertShare
from pytest_infer.metrics.result import Result
from pytest_infer.records import ExpertUsage
from pytest_infer.report.experts import heatmap
from pytest_infer.units import count

HOTTEST, COLDEST = 5, 3
_MOST_LAYERS, _MOST_EXPERTS = 8, 8


def lines(results: Sequence[Result], *, width: int, drawn: bool = False) -> Iterator[Text]:
    """Yield the list, and with `drawn` a map where the model is small; nothing where usage was not recorded.

    Prompts whose selections do not add up are left out, and so are copies of a text, as `one_each` chooses them.
    Several models have no list in common.
    """
    adds_up = [(r.prompt, r.experts) for r in results if r.experts is not None and r.experts.check == experts.PASSED]
    contents = [prompt.content_sha256 or prompt.name for prompt, _ in adds_up]
    # All of a run keep traces, or none does.
    worths = [experts.worth(u.prefill_tokens + u.decode_tokens, p.limits.sequences, trace=False) for p, u in adds_up]
    usage = experts.merged([adds_up[n][1] for n in experts.one_each(contents, worths)])
    if usage is None or len({result.model.name for result in results}) > 1 or not experts.selections(usage):
        return
    yield _list("hottest", experts.hottest(usage, HOTTEST), width)
    yield _list("coldest", experts.coldest(usage, COLDEST), width)
    yield Text(_chance(usage), style="dim")
    if drawn and len(usage.sites) <= _MOST_LAYERS and max(site.experts for site in usage.sites) <= _MOST_EXPERTS:
        layers = [
            heatmap.Layer(title=f"L{site.layer}", counts=row, experts=site.experts)
            for site, row in zip(usage.sites, experts.counts(usage), strict=True)
        ]
        yield from heatmap.lines(layers, width)


def _list(title: str, shares: Sequence[ExpertShare], width: int) -> Text:
    """Return as many experts as one line holds, at least one: name, times, percent."""
    line = f"{title}  "
    for number, share in enumerate(shares):
        part = f"{experts.label(share)} {count(share.selections)}× {100 * share.share:.1f} %"
        joined = f"{line}{', ' if number else ''}{part}"
        if number and len(joined) > width:
            break
        line = joined
    return Text(line)


def _chance(usage: ExpertUsage) -> str:
    # Imported late: a run without expert usage needs no numpy here.
    from pytest_infer.analysis.experts.uniform import expected  # noqa: PLC0415

    tokens = usage.prefill_tokens + usage.decode_tokens
    of = f"of {count(tokens)} prompt and generated tokens"
    site, *others = usage.sites
    if any((other.slots, other.k) != (site.slots, site.k) for other in others):
        return f"{of}; layers differ in their experts; more: pytest-infer experts"
    even = f"{of}; an even share is {100 / site.slots:.3g} %"
    null = expected(site.slots, site.k, tokens).get("imbalance")
    chance = f", a layer's busiest gets {100 * null.mean / site.slots:.3g} % by chance" if null is not None else ""
    return f"{even}{chance}; more: pytest-infer experts"
