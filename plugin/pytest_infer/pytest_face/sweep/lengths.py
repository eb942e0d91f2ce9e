"""The prompt lengths of a curve: as they are given, and as a model's context allows."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pytest_infer.errors import OptionError
from pytest_infer.pytest_face.options import BARE

SHORTEST = 16
CONTEXT = "context"
_RANGE = re.compile(rf"(\d+)\.\.(\d+|{CONTEXT})")


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
            longest = None if found[2] == CONTEXT else int(found[2])
            if int(found[1]) < 1 or (longest is not None and longest <= int(found[1])):
                raise OptionError(f"{where}: a range goes from 1 or more to something longer, not {text!r}")
            return cls(shortest=int(found[1]), longest=longest)
        parts = [part.strip() for part in text.split(",")]
        if not all(part.isdecimal() and int(part) > 0 for part in parts) or len(set(parts)) < len(parts):
            raise OptionError(f"{where} takes lengths in tokens, as 16..1024, 16..{CONTEXT} or 16,100, not {text!r}")
        return cls(given=tuple(sorted(map(int, parts))))

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
