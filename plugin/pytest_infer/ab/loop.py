"""What is asked of a prompt's rounds, and who decides when each of them is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from pytest_infer.measure import rounds
from pytest_infer.records import PromptInfo, PromptRecord, Round


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One prompt to measure: which, how often, with what, and who is told of it; `config` is what is swept, by axis."""

    nodeid: str
    prompt: PromptInfo
    plan: rounds.RoundPlan
    runner: rounds.Runner
    watch: rounds.Watcher
    threads: int | None = None
    vocabulary: int | None = None
    config: Mapping[str, str] = field(default_factory=dict)


class Loop(Protocol):
    """Who decides when a round is run, and where."""

    def elsewhere(
        self, nodeid: str, prompt: PromptInfo, plan: rounds.RoundPlan, config: Mapping[str, str]
    ) -> PromptRecord | None:
        """Let processes of the loop's own measure a prompt, and return its record; None: `measure` does, here."""

    def measure(self, task: Task) -> rounds.Measured:
        """Run the rounds of one prompt."""

    def compared(self, record: PromptRecord) -> PromptRecord:
        """Return the record with what the other side says of the same tokens, where there is one."""

    def finished(self, record: PromptRecord) -> None:
        """Take the record, which is stored by now."""


class Here:
    """A loop that measures in this process."""

    def elsewhere(
        self,
        nodeid: str,  # noqa: ARG002
        prompt: PromptInfo,  # noqa: ARG002
        plan: rounds.RoundPlan,  # noqa: ARG002
        config: Mapping[str, str],  # noqa: ARG002
    ) -> PromptRecord | None:
        """Return None: it is measured here."""
        return None

    def compared(self, record: PromptRecord) -> PromptRecord:
        """Return it as it is: there is nothing to add."""
        return record


class Alone(Here):
    """Rounds one after the other, with nobody to wait for."""

    def measure(self, task: Task) -> rounds.Measured:
        """Run the rounds as planned."""
        return rounds.measure(task.runner, task.plan, task.watch)

    def finished(self, record: PromptRecord) -> None:
        """Do nothing with it."""


Settled = Callable[[PromptInfo, tuple[Round, ...], tuple[Round, ...], Mapping[str, str]], bool]
"""Asked after each block of pairs, base rounds first, with what is swept, by axis: do they say enough already?"""
