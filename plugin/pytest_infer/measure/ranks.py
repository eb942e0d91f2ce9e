"""The processes of one distributed run (torchrun): which of them this is, and what they tell each other."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pytest_infer import untrusted
from pytest_infer.measure.counters.accelerator import loaded_torch
from pytest_infer.measure.counters.kernel_files import Unavailable
from pytest_infer.records import Counters, RankMemory, Ranks

PATIENCE_S = 60
"""How long one rank waits for another to come to the same point; their rounds end together."""
_PREFIX = "pytest-infer"
_MEMORY = ("rss_bytes", "peak_rss_bytes", "device_peak_bytes")


@dataclass(frozen=True, slots=True)
class Place:
    """Which process this is, from 0, of how many."""

    rank: int = 0
    size: int = 1

    @property
    def alone(self) -> bool:
        """Whether there are no others."""
        return self.size == 1

    @property
    def leads(self) -> bool:
        """Whether this one shows, stores and judges what all of them measured."""
        return self.rank == 0


def here(environ: Mapping[str, str] = os.environ) -> Place:
    """Return this process's place, as torchrun and other launchers of torch's give it to each of theirs."""
    rank, size = environ.get("RANK", ""), environ.get("WORLD_SIZE", "")
    if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
        return Place()
    return Place(rank=int(rank), size=int(size))


class World:
    """What the ranks tell each other, through the store by which torch's own processes meet.

    Nothing here is a collective: a rank that fails or has gone leaves a reason, and keeps nobody waiting for ever.
    """

    def __init__(self, place: Place, environ: Mapping[str, str] = os.environ) -> None:
        self.place = place
        self._environ = environ
        self._store: Any = None
        self._missing: str | None = None

    def tell(self, key: str, value: object) -> None:
        """Let the others hear something; that they cannot is said where they do not."""
        store = self._met()
        if store is not None:
            try:
                store.set(self._named(key, self.place.rank), json.dumps(value))
            except Exception as error:  # noqa: BLE001 - of a connection, in whatever class torch has for it
                self._missing = untrusted.failure(error)

    def hear(self, key: str, rank: int) -> Any:
        """Return what a rank tells, or `Unavailable` with the reason why it is not known."""
        store = self._met()
        if store is None:
            return Unavailable(self._missing or "the ranks cannot reach each other")
        try:
            return json.loads(store.get(self._named(key, rank)))
        except Exception as error:  # noqa: BLE001 - as above
            return Unavailable(f"rank {rank} did not answer: {untrusted.failure(error).partition('. ')[0][:200]}")

    def gathered(self, test: str, rounds: Sequence[Counters]) -> Ranks | None:
        """Return every rank's memory and CPU time in a test's rounds; None for one rank, and where this one follows."""
        if self.place.alone:
            return None
        took = _known(rounds, "cpu_s")
        own: dict[str, float | None] = {name: max(_known(rounds, name), default=None) for name in _MEMORY}
        own["cpu_s"] = statistics.median(took) if took else None
        key = f"use of {test}"
        if not self.place.leads:
            self.tell(key, own)
            return None
        heard = [own, *(self.hear(key, rank) for rank in range(1, self.place.size))]
        return Ranks(
            size=self.place.size,
            cpu_s=tuple(None if isinstance(told, Unavailable) else told.pop("cpu_s") for told in heard),
            memory=tuple(
                RankMemory(absent=told.reason) if isinstance(told, Unavailable) else RankMemory(**told)
                for told in heard
            ),
        )

    def agreed(self, code: int) -> tuple[int, list[str]]:
        """Return the exit code of all ranks, and lines about others that end otherwise than the first one."""
        if self.place.alone or loaded_torch() is None:
            return code, []
        if not self.place.leads:
            self.tell("ends with", code)
            told = self.hear("all end with", 0)
            return (code if isinstance(told, Unavailable) else int(told)), []
        others = {rank: self.hear("ends with", rank) for rank in range(1, self.place.size)}
        lines = [f"! {told.reason}" for told in others.values() if isinstance(told, Unavailable)]
        failed = {rank: told for rank, told in others.items() if not isinstance(told, Unavailable) and told != 0}
        if code == 0 and failed:
            lines += [f"! rank {rank} ended with {told}" for rank, told in failed.items()]
            code = next(iter(failed.values()))
        self.tell("all end with", code)
        return code, lines

    def _named(self, key: str, rank: int) -> str:
        # A restarted group of processes meets at the same store.
        run = [self._environ.get(f"TORCHELASTIC_{name}", "0") for name in ("RUN_ID", "RESTART_COUNT")]
        return "/".join((_PREFIX, *run, str(rank), key))

    def _met(self) -> Any:
        """Return the store, connected when it is first needed; None, and why in `_missing`, where there is none."""
        if self._store is None and self._missing is None:
            torch = loaded_torch()
            try:
                if torch is None:
                    self._missing = "the ranks cannot reach each other: torch is not loaded"
                else:
                    self._store = torch.distributed.TCPStore(
                        self._environ["MASTER_ADDR"],
                        int(self._environ["MASTER_PORT"]),
                        is_master=False,
                        wait_for_workers=False,
                        timeout=timedelta(seconds=PATIENCE_S),
                    )
            except Exception as error:  # noqa: BLE001 - as above; or no such store in this torch
                self._missing = f"the ranks cannot reach each other: {untrusted.failure(error)}"
        return self._store


def _known(rounds: Sequence[Counters], name: str) -> list[int]:
    """Return the values of a counter, of the rounds that have one."""
    values = (getattr(counters, name).value for counters in rounds)
    return [value for value in values if value is not None]
