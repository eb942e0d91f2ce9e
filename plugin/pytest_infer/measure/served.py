"""Warnings about rounds that a server ran: what it counted, and what it had in its cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pytest_infer.metrics import timing
from pytest_infer.records import MeasurementWarning, Output, Reported, Round, TokenTrace, WarningKind

NOTHING = Reported()


def find(rounds: Sequence[Round], output: Output) -> Iterator[MeasurementWarning]:
    """Return the warnings of one prompt, most serious first."""
    for what, counted, told in (
        ("generated", timing.generated_tokens, lambda said: said.generated),
        ("prompt", timing.prompt_tokens, lambda said: said.prompt),
    ):
        found = _miscounted(rounds, counted, told)
        if found is not None:
            yield MeasurementWarning(
                kind=WarningKind.MISCOUNTED,
                text=f"{_which(found[0], rounds)} {found[1]} {what} tokens here, and {found[2]} as the server counts: "
                "figures for a token are those of the tokens that came; look at what this server streams",
            )
    hits = [n for n, r in enumerate(rounds) if _unwanted(r.trace.reported or NOTHING)]
    if hits:
        said = rounds[hits[0]].trace.reported or NOTHING
        yield MeasurementWarning(
            kind=WarningKind.CACHED,
            text=f"{_which(hits, rounds)} {said.cached} tokens of the prompt in the server's cache, "
            f"where {said.allowed or 'none'} may be: TTFT is that of a shorter prompt; switch the server's cache of "
            "prompts off, or measure it on purpose (--infer-cache=warm)",
        )
    prompts = [r.trace.prompt_tokens for r in rounds]
    if min(prompts) < max(prompts):
        yield MeasurementWarning(
            kind=WarningKind.LENGTHS_DIFFER,
            text=f"the rounds' prompts have {min(prompts)} to {max(prompts)} tokens: the tokeniser makes more of some "
            "nonces than of others; measure with --infer-cache=off or warm",
        )
    lengths = [timing.generated_tokens(r.trace) for r in rounds]
    if output.varied is not None and min(lengths) < max(lengths):
        yield MeasurementWarning(
            kind=WarningKind.LENGTHS_DIFFER,
            text=f"the rounds generated {min(lengths)} to {max(lengths)} tokens, as {output.varied}: "
            "compare times a token, or let all go to the limit (--infer-ignore-eos)",
        )


def _miscounted(
    rounds: Sequence[Round], counted: Callable[[TokenTrace], int | None], told: Callable[[Reported], int | None]
) -> tuple[list[int], int, int] | None:
    """Return the rounds where both are known and differ, and the two numbers of the first of them."""
    pairs = [(counted(r.trace), told(r.trace.reported or NOTHING)) for r in rounds]
    found = {n: (a, b) for n, (a, b) in enumerate(pairs) if a is not None and b is not None and a != b}
    return (list(found), *next(iter(found.values()))) if found else None


def _unwanted(said: Reported) -> bool:
    return said.cached is not None and said.allowed is not None and said.cached > said.allowed


def _which(numbers: Sequence[int], rounds: Sequence[Round]) -> str:
    """Return "round 2 has", or "4 of 5 rounds (first round 2) have"."""
    if len(rounds) == 1 or len(numbers) == 1:
        return f"round {numbers[0] + 1} has"
    return f"{len(numbers)} of {len(rounds)} rounds (first round {numbers[0] + 1}) have"
