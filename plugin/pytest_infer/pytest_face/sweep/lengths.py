"""The prompt lengths of a curve: as they are given, and as a model's context allows."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pytest_infer.errors import OptionError
from pytest_infer.pytest_face.options import BARE

SHORTEST = 16
CONTEXT = "context"
_RANGE = re.compile(rf"(\d+)\.\.(\d+|{CONTEXT})", re.ASCII)
_WHOLE = re.compile(r"0*([1-9][0-9]{0,9})")


def whole(text: str) -> int | None:
    """Return a whole number of 1 or more and up to ten digits; None for other text: nothing counted here is longer."""
    found = _WHOLE.fullmatch(text)
    return None if found is None else int(found[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Lengths in tokens: those of `given`, or from `shortest` on by doubling up to `longest` (None: the context)."""

    given: tuple[int, ...] = ()
    shortest: int = SHORTEST
    longest: int | None = None

    @classmethod
    def parse(cls, text: str, where: str) -> Lengths:
        """Return what an option says; raise OptionError naming `where` it stands."""
        if text in (BARE, "on", "true"):
            return cls()
        found = _RANGE.fullmatch(text)
        if found is not None:
            shortest, longest = map(whole, found.groups())
            if shortest is None or (found[2] != CONTEXT and (longest is None or longest <= shortest)):
                raise OptionError(f"{where}: a range goes from 1 or more to something longer, not {text!r}")
            return cls(shortest=shortest, longest=longest)
        parts = [whole(part.strip()) for part in text.split(",")]
        known = {part for part in parts if part is not None}
        if len(known) < len(parts):
            raise OptionError(f"{where} takes lengths in tokens, as 16..1024, 16..{CONTEXT} or 16,100, not {text!r}")
        return cls(given=tuple(sorted(known)))

    @property
    def text(self) -> str:
        """Return them as the option takes them."""
        if self.given:
            return ",".join(map(str, self.given))
        return f"{self.shortest}..{CONTEXT if self.longest is None else self.longest}"

    @property
    def needs_context(self) -> bool:
        """Whether the model's context is the end of it."""
        return not self.given and self.longest is None

    def up_to(self, most: int) -> tuple[int, ...]:
        """Return the lengths, where no prompt may be longer than `most`, which ends a range to the context."""
        if self.given:
            return self.given
        end = most if self.longest is None else self.longest
        found, length = [], self.shortest
        while length < end:
            found.append(length)
            length *= 2
        return (*found, end)
