"""What the two processes of a comparison say to each other."""

from __future__ import annotations

from multiprocessing.connection import Connection
from typing import Generic, TypeVar, Union

import msgspec

from pytest_infer.records import Pass, PassParts, PromptRecord, Reference, Round, TokenTrace

PROTOCOL = 11
"""Raise it with every change of a message: with an interpreter of its own the other side may have another version."""


class WireMessage(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """One message; its type's name is the tag."""


# from the parent


class Hello(WireMessage, frozen=True, kw_only=True):
    """The first message: what is planned, and the folder whose code the child must not run (None: it may).

    `worktree` is excepted from `checkout`, in which it may lie. `impossible` are tests that the parent cannot run.
    """

    protocol: int = PROTOCOL
    planned: tuple[str, ...] = ()
    impossible: tuple[str, ...] = ()
    checkout: str | None = None
    worktree: str | None = None


class Go(WireMessage, frozen=True, kw_only=True):
    """Run this test, as far as its `infer(prompt)`; those before it that have not run are skipped."""

    nodeid: str


class WarmUp(WireMessage, frozen=True, kw_only=True):
    """Run a round that does not count."""


class Time(WireMessage, frozen=True, kw_only=True):
    """Run a timed round."""

    cores: tuple[int, ...] = ()


class TakeTurns(WireMessage, frozen=True, kw_only=True):
    """Run a pass in turns of a token with the other side of the pair; the fields are those of `ab.baton.TokenTurns`.

    `number` is the pass's, the same for both sides; `tokens` a limit of its own. With `skip` they are generated behind
    so many of the first whole round's, which are read as part of the prompt, and are those that followed there.
    `partner` is the other side's process where it is stopped while this one has the turn, else 0. `observe`: take the
    steps apart, and answer with those.
    """

    number: int
    begins: bool
    every: int
    cores: tuple[int, ...]
    partner: int = 0
    tokens: int | None = None
    skip: int | None = None
    observe: bool = False


class Encode(WireMessage, frozen=True, kw_only=True):
    """Encode the prompt so many times."""

    times: int


class Follow(WireMessage, frozen=True, kw_only=True):
    """Forget the timed rounds of this test; from now on follow the tokens of the reference in all rounds and passes."""

    reference: Reference


class Adopt(WireMessage, frozen=True, kw_only=True):
    """Passes generate the tokens of this trace: no whole round will be asked for."""

    trace: TokenTrace


class RunProfile(WireMessage, frozen=True, kw_only=True):
    """Run the profile round on the tokens of a reference, if there is one; `full` is a file for whole distributions."""

    experts: bool
    trace: bool = False
    reference: Reference | None = None
    full: str | None = None


class Finish(WireMessage, frozen=True, kw_only=True):
    """Return from `infer(prompt)` with these rounds, by number."""

    keep: tuple[int, ...]


class Abandon(WireMessage, frozen=True, kw_only=True):
    """Leave `infer(prompt)`: the parent failed in its own."""


# from the child


class OtherProtocol(WireMessage, frozen=True, kw_only=True):
    """The child speaks another protocol."""

    protocol: int


class Ready(WireMessage, frozen=True, kw_only=True):
    """The suite is collected. `new` are planned tests that it lacks, `missing` are measuring ones not planned.

    `foreign` are modules that were imported from the parent's checkout, each with its file.
    """

    new: tuple[str, ...]
    missing: tuple[str, ...]
    foreign: dict[str, str]


class Begun(WireMessage, frozen=True, kw_only=True):
    """The model is loaded and the prompt encoded: rounds can be asked for.

    `private_bytes` is the memory that nobody shares with this process, where the kernel tells it, and `threads` those
    of the engine. `device_bytes` are those that it holds of an accelerator, on which `device_free` are left. `turns`
    says whether the engine can take turns of a token, `windows` whether in any part of this generation, and `follows`
    whether it can follow given tokens, of which its model knows `vocabulary`.
    """

    turns: bool = False
    windows: bool = False
    follows: bool = False
    vocabulary: int | None = None
    threads: int | None = None
    private_bytes: int | None = None
    device_bytes: int | None = None
    device_free: int | None = None


class Warmed(WireMessage, frozen=True, kw_only=True):
    """The warm-up round is over."""


class TimedRound(WireMessage, frozen=True, kw_only=True):
    """A timed round."""

    round: Round


class TookTurns(WireMessage, frozen=True, kw_only=True):
    """This side's half of a pass; `wall_ns` is how long both sides took together, as this side saw it."""

    taken: Pass
    wall_ns: int


class TookApart(WireMessage, frozen=True, kw_only=True):
    """This side's steps of an observed pass, or why there are none."""

    parts: PassParts | None = None
    absent: str | None = None


class Encoded(WireMessage, frozen=True, kw_only=True):
    """How long the tokeniser took each time, nanoseconds."""

    took_ns: tuple[int, ...]


class Follows(WireMessage, frozen=True, kw_only=True):
    """The rounds from now on follow the reference."""


class Adopted(WireMessage, frozen=True, kw_only=True):
    """It is known what passes generate."""


class Instrumented(WireMessage, frozen=True, kw_only=True):
    """The profile round is over; the record will hold it."""


class FinishedTest(WireMessage, frozen=True, kw_only=True):
    """The record of the prompt, what was imported from the parent's checkout, and lines of what failed."""

    record: PromptRecord
    foreign: dict[str, str]
    notes: tuple[str, ...] = ()


class Ended(WireMessage, frozen=True, kw_only=True):
    """The test is over, torn down and all; `why` says in a line why it did not pass, if it did not.

    `skipped` says that nothing of it failed: it was skipped, or is expected to fail.
    """

    nodeid: str
    why: str | None = None
    skipped: bool = False


FromParent = Union[  # noqa: UP007 - msgspec reads it at run time
    Hello, Go, WarmUp, Time, TakeTurns, Encode, Follow, Adopt, RunProfile, Finish, Abandon
]  # fmt: skip
FromChild = Union[  # noqa: UP007 - as above
    OtherProtocol, Ready, Begun, Warmed, TimedRound, TookTurns, TookApart, Encoded, Follows, Adopted,
    Instrumented, FinishedTest, Ended,
]  # fmt: skip

Received = TypeVar("Received")


class Channel(Generic[Received]):
    """One end of a connection, which sends and receives whole messages as JSON."""

    def __init__(self, connection: Connection, expects: object) -> None:
        self._connection = connection
        self._decoder: msgspec.json.Decoder[Received] = msgspec.json.Decoder(expects)

    def send(self, message: WireMessage) -> None:
        """Send a message; raise OSError when the other end is gone, UnicodeEncodeError for half a character."""
        self._connection.send_bytes(msgspec.json.encode(message))

    def receive(self) -> Received:
        """Wait for a message, blocked in a read; raise EOFError or OSError when the other end is gone.

        Raises:
            msgspec.DecodeError: it is not one of the messages expected.
        """
        return self._decoder.decode(self._connection.recv_bytes())

    def waits(self, seconds: float) -> bool:
        """Return whether something can be received within so many seconds."""
        return self._connection.poll(seconds)

    def close(self) -> None:
        """Close this end, which the other one notices."""
        self._connection.close()


def parents_end(connection: Connection) -> Channel[FromChild]:
    """Return the parent's end."""
    return Channel(connection, FromChild)


def childs_end(connection: Connection) -> Channel[FromParent]:
    """Return the child's end."""
    return Channel(connection, FromParent)
