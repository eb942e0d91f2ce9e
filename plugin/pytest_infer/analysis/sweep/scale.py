"""Where values stand in a drawing of whole cells."""

from __future__ import annotations

import math


class Scale:
    """From values between `low` and `high` to whole numbers from 0 to `size` − 1, by their size or its logarithm.

    Values of a logarithmic scale are above 0.
    """

    def __init__(self, low: float, high: float, size: int, *, logarithmic: bool) -> None:
        self._to = math.log if logarithmic else float
        self._from = math.exp if logarithmic else float
        self._low, self._high, self._size = self._to(low), self._to(high), size

    def place(self, value: float) -> int:
        """Return the cell of a value, the middle one where there is a single value."""
        if self._high == self._low:
            return self._size // 2
        return round((self._to(value) - self._low) / (self._high - self._low) * (self._size - 1))

    def back(self, place: int) -> float:
        """Return the value in the middle of a cell."""
        return self._from(self._low + (self._high - self._low) * place / (self._size - 1))

    def holds(self, value: float) -> bool:
        """Return whether a value has a cell."""
        return value > 0 and 0 <= self.place(value) < self._size
