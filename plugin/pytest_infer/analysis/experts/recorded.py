"""The tests of a stored run whose expert usage can be shown, and what is worked with of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pytest_infer.analysis import alike
from pytest_infer.analysis.sweep import axes
from pytest_infer.errors import StorageError
from pytest_infer.metrics import experts
from pytest_infer.storage import sidecar
from pytest_infer.storage.runs import Row, Run

if TYPE_CHECKING:
    from pytest_infer.analysis.experts.suite import PromptUsage


def recorded(
    run: Run, keyword: str | None = None, *, remedy: str = "choose tests with -k"
) -> tuple[list[Row], list[str]]:
    """Return the tests of a run whose expert usage adds up, and a line for each whose usage does not, and for copies.

    Raises StorageError where they are of several models; `remedy` is what to do then.
    """
    found, left_out = [], []
    for row in run.rows:
        usage = row.experts
        if usage.counts is None or (keyword is not None and keyword not in row.test):
            continue
        if not usage.adds_up:
            left_out.append(f"{row.test}: {usage.check}")
        else:
            found.append(row)
    models = {(row.model.name, row.model.weights_sha256): row for row in found}
    if len(models) > 1:
        apart = alike.apart([({}, alike.named(row.model)) for row in models.values()])
        names = [" ".join(dict.fromkeys([str(name), *words])) for (name, _), words in zip(models, apart, strict=True)]
        raise StorageError(f"run {run.label} holds expert usage of several models ({', '.join(names)}); {remedy}")
    if copies := len(found) - len(_distinct(found)):
        left_out.append(f"{copies} test{'s' if copies > 1 else ''} of a prompt that another test measured as well")
    return found, left_out


def sizes_apart(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return what tells configurations apart whose experts differ in size, as -k finds it; nothing where none do.

    What is not known, as of some quantised weights, is another size than any that is.
    """
    first: dict[tuple[tuple[int | None, int | None], ...], Row] = {}
    for row in rows:
        sizes = tuple((site.expert_bytes, site.shared_bytes) for site in row.experts.sites)
        first.setdefault(sizes, row)
    if len(first) < 2:
        return ()
    configs = [row.config for row in first.values()]
    words = alike.apart([({}, alike.named(row.model)) for row in first.values()])
    return tuple(
        axes.id_of({axis: value for axis, value in config.items() if any(of.get(axis) != value for of in configs)})
        or " ".join(said)
        or row.test
        for row, config, said in zip(first.values(), configs, words, strict=True)
    )


def _distinct(rows: Sequence[Row]) -> list[Row]:
    """Return a test of each prompt, as `one_each` chooses it."""
    return [rows[n] for n in experts.one_each(list(map(content, rows)), list(map(_worth, rows)))]


def content(row: Row) -> str:
    """Return what the text of a test's prompt is told apart by."""
    return row.prompt.content_sha256 or row.name


def _worth(row: Row) -> tuple[float, int, bool]:
    tokens, limits = row.experts.tokens, row.prompt.limits
    batch = None if limits is None else limits.batch
    return experts.worth(0 if tokens is None else tokens.prefill + tokens.decode, batch or 1, trace=row.experts.trace)


def why_nothing(run: Run, keyword: str | None = None) -> str:
    """Return the line that says why a run has no expert usage to show."""
    rows = [row for row in run.rows if keyword is None or keyword in row.test]
    if not rows:
        return f"run {run.label} has no test whose name holds {keyword!r}"
    reasons = Counter(_reason(row) for row in rows)
    return f"no expert usage in run {run.label}: {'; '.join(reason for reason, _ in reasons.most_common(3))}"


def _reason(row: Row) -> str:
    if row.plain:
        return "it is pytest-benchmark's own, not measured with `infer`"
    usage = row.experts
    if usage.counts is not None:
        return f"selections do not add up ({usage.check})"
    return usage.absent or "not recorded"


def prompts_of(run: Run, rows: Sequence[Row]) -> list[PromptUsage]:
    """Return what is worked with of each prompt: its census, and its trace from the run's sidecar where it kept one.

    Tests go by their prompts' names, or by their own where several have one prompt.
    """
    # Imported late, here and below: whether there is usage is told without numpy.
    from pytest_infer.analysis.experts import census  # noqa: PLC0415
    from pytest_infer.analysis.experts.suite import PromptUsage  # noqa: PLC0415

    arrays = sidecar.read(run.path) if any(row.experts.trace for row in rows) else {}
    rows = _distinct(rows)
    titles = alike.titles({row.test: row.name for row in rows})
    found = []
    for row in rows:
        taken = census.of(row.experts)
        if taken is None:
            continue
        found.append(
            PromptUsage(
                name=titles[row.test],
                content=content(row),
                census=taken,
                tags=row.tags,
                group=row.prompt.group,
                weights=row.experts.weights,
                trace=_trace(arrays, row, [site.name for site in taken.sites]),
            )
        )
    return found


def other_side(rows: Sequence[Row]) -> list[PromptUsage]:
    """Return the usage of the other side of runs that compare two commits, of the tests whose usage adds up there."""
    from pytest_infer.analysis.experts import census  # noqa: PLC0415
    from pytest_infer.analysis.experts.suite import PromptUsage  # noqa: PLC0415

    rows = _distinct(rows)
    titles = alike.titles({row.test: row.name for row in rows})
    found = []
    for row in rows:
        usage = None if row.against is None else row.against.experts
        taken = None if usage is None or not usage.adds_up else census.of(usage)
        if taken is not None:
            found.append(PromptUsage(name=titles[row.test], census=taken))
    return found


def _trace(arrays: dict[str, Any], row: Row, sites: Sequence[str]) -> tuple[Any, ...] | None:
    if not row.experts.trace:
        return None
    found = [arrays.get(sidecar.expert_key(row.test, site)) for site in sites]
    return None if any(rows is None or rows.ndim != 2 for rows in found) else tuple(found)
