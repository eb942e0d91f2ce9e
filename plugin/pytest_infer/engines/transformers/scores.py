"""What is kept of the logits of each generated position, and tokens that are given instead of chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from pytest_infer import untrusted
from pytest_infer.engines.transformers import devices
from pytest_infer.records import TOP, Scores

MOST_POSITIONS = 8192
"""Of a batch so many sequences are kept as have this many positions together: about 4 MB."""
MOST_FULL_BYTES = 2**31
"""Whole distributions are written up to this size."""
_AT_ONCE = 2**22
"""So many logits are looked at together: the two buffers then have 16 MB each."""
_CHUNK = 2048
"""The highest are looked for in parts of this length first: topk copies, on the CPU, what it is given."""


class ScoreRecorder:
    """Keeps the most probable tokens of each position; its buffers are made before the first: looking takes none.

    For an engine of one's own: `see` the logits of each step with what was chosen, then `scores()`.
    """

    def __init__(
        self,
        *,
        positions: int,
        vocabulary: int,
        sequences: int = 1,
        device: torch.device | str = "cpu",
        full: Path | None = None,
    ) -> None:
        """Make room for so many positions; `full` is a file for the log-probabilities of the whole vocabulary.

        It gets those of the first sequence: float32, a row for each position, as the machine orders bytes; no file is
        made of more than 2 GiB, and none is left where it cannot be written.
        """
        self._kept = max(1, min(sequences, MOST_POSITIONS // max(1, positions)))
        self._vocabulary, self._width = vocabulary, min(TOP, vocabulary)
        self._rows = max(1, min(self._kept, _AT_ONCE // vocabulary))
        chunk = min(_CHUNK, vocabulary)
        # Touched here: memory that is only promised would become resident while a generation is watched.
        self._padded = torch.full((self._rows, math.ceil(vocabulary / chunk), chunk), -torch.inf, device=device)
        self._powers = torch.full_like(self._padded, 1.0)
        shape = (self._kept, positions)
        self._tokens = torch.ones(shape, dtype=torch.int32, device=device)
        self._chosen, self._rest = (torch.full(shape, torch.nan, device=device) for _ in range(2))
        self._top_ids = torch.ones((*shape, self._width), dtype=torch.int32, device=device)
        self._top = torch.full((*shape, self._width), torch.nan, device=device)
        self._exact = torch.float32 if self._padded.device.type == "mps" else torch.float64  # Metal has no float64
        self._positions = 0
        small = 4 * positions * vocabulary <= MOST_FULL_BYTES
        self._full = full
        self._file: IO[bytes] | None = _opened(full) if full is not None and small else None

    @torch.no_grad()
    def see(self, logits: torch.Tensor, tokens: torch.Tensor | Sequence[int]) -> None:
        """Take the logits of the next position, of shape (sequences, vocabulary), and the token of each sequence."""
        if self._positions == self._tokens.shape[1]:
            return
        given = torch.as_tensor(tokens, device=self._tokens.device)[: self._kept].to(torch.int64)
        for first in range(0, self._kept, self._rows):
            rows = slice(first, min(first + self._rows, self._kept))
            self._see(logits[rows], given[rows], rows)
        self._positions += 1

    def _see(self, logits: torch.Tensor, tokens: torch.Tensor, rows: slice) -> None:
        count = logits.shape[0]
        padded, powers = self._padded[:count], self._powers[:count]
        scores = padded.view(count, -1)[:, : self._vocabulary]
        scores.copy_(logits)
        scores.sub_(scores.amax(-1, keepdim=True))
        torch.exp(padded, out=powers)
        total = self._log_sum(powers)
        scores.sub_(total.float())
        values, places = padded.topk(min(self._width, padded.shape[-1]), dim=-1)
        starts = torch.arange(padded.shape[1], device=places.device).view(1, -1, 1) * padded.shape[2]
        top, which = values.flatten(1).topk(self._width, dim=-1)
        # Padding is as improbable as an id that must not be chosen.
        ids = (places + starts).flatten(1).gather(1, which).clamp_(max=self._vocabulary - 1)
        powers.view(count, -1).scatter_(1, ids, 0.0)
        rest = self._log_sum(powers) - total
        at = self._positions
        self._tokens[rows, at] = tokens.to(torch.int32)
        self._chosen[rows, at] = scores.gather(1, tokens[:, None])[:, 0]
        self._top_ids[rows, at] = ids.to(torch.int32)
        self._top[rows, at] = top
        self._rest[rows, at] = rest[:, 0].to(torch.float32)
        if rows.start == 0:
            self._write(scores[0])

    def _log_sum(self, powers: torch.Tensor) -> torch.Tensor:
        """Return the logarithm of the sum of each row, part by part: summed in float64 at once it would be copied."""
        return powers.sum(-1).to(self._exact).sum(-1, keepdim=True).log_()

    def _write(self, row: torch.Tensor) -> None:
        if self._file is not None:
            self._or_no_file(lambda file: file.write(row.contiguous().cpu().numpy().data))

    def _or_no_file(self, act: Callable[[IO[bytes]], object]) -> None:
        """Do something with the file, and remove it where that fails: it would be taken for a whole one."""
        if self._file is None or self._full is None:
            return
        try:
            act(self._file)
        except OSError:
            self._full.unlink(missing_ok=True)
            with suppress(OSError):
                self._file.close()
            self._file = None

    def scores(self) -> Scores | None:
        """Return what was seen; None before anything was."""
        self._or_no_file(lambda file: file.close())
        self._file = None
        seen = self._positions
        if not seen:
            return None
        return Scores(
            sequences=self._kept,
            positions=seen,
            width=self._width,
            vocabulary=self._vocabulary,
            tokens=_bytes(self._tokens[:, :seen], "<i4"),
            chosen=_bytes(self._chosen[:, :seen], "<f4"),
            top_ids=_bytes(self._top_ids[:, :seen], "<i4"),
            top=_bytes(self._top[:, :seen], "<f4"),
            rest=_bytes(self._rest[:, :seen], "<f4"),
        )


def _opened(path: Path) -> IO[bytes] | None:
    try:
        return path.open("wb")
    except OSError:
        return None


def _bytes(tensor: torch.Tensor, dtype: str) -> bytes:
    return bytes(tensor.cpu().numpy().astype(dtype).tobytes())


class Look(LogitsProcessor):  # type: ignore[misc]  # transformers ships no types
    """Shows a recorder the logits of each step, one step late: which token was chosen is known then.

    `problem` says why that failed, if it did; generation never fails for it.
    """

    problem: str | None = None

    def __init__(self, model: Any, sequences: int, positions: int, full: Path | None) -> None:
        self._home = devices.home(model)
        self._sequences, self._positions, self._full = sequences, positions, full
        self._make(vocabulary_of(model))

    def _make(self, vocabulary: int) -> None:
        self.recorder = ScoreRecorder(
            positions=self._positions,
            vocabulary=vocabulary,
            sequences=self._sequences,
            device=self._home,
            full=self._full,
        )
        self._last = torch.zeros((self._sequences, vocabulary), device=self._home).fill_(1)
        self._waiting, self._length = False, 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores as they are."""
        self.close(input_ids)
        if self.problem is None:
            try:
                if scores.shape != self._last.shape:
                    self.recorder.scores()  # which closes its file
                    self._make(scores.shape[1])
                self._last.copy_(scores)
                self._waiting, self._length = True, input_ids.shape[1]
            except (RuntimeError, TypeError) as error:  # from torch: memory, a device
                self.problem = untrusted.failure(error)
        return scores

    def close(self, ids: torch.Tensor) -> None:
        """Tell the recorder which tokens the last step chose: the last ones of these ids, (sequences, length).

        Where they are no more than that step began with, generate() took its token back: on MPS it sees an end late.
        """
        taken_back = ids.shape[1] <= self._length
        if not self._waiting or taken_back:
            return
        self._waiting = False
        try:
            self.recorder.see(self._last, ids[:, -1])
        except (RuntimeError, IndexError, TypeError) as error:  # from torch: memory, a device, an id beyond the logits
            self.problem = untrusted.failure(error)


class Follow(LogitsProcessor):  # type: ignore[misc]  # as above
    """Leaves one token to be chosen at each step: the next of those given."""

    def __init__(self, tokens: Sequence[int], sequences: int, model: Any) -> None:
        home = devices.home(model)
        self._ids = torch.tensor(list(tokens), device=home).view(-1, 1, 1).expand(-1, sequences, 1)
        # Made once: a step changes two numbers of a row, which costs microseconds whatever the vocabulary.
        self._row = torch.full((sequences, vocabulary_of(model)), -torch.inf, device=home)
        self._step = 0

    def restart(self) -> None:
        """Begin with the first token again, if that is not where it stands."""
        if self._step:
            self._row.fill_(-torch.inf)
            self._step = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002 - as it is called
        """Return scores by which the next token is chosen, greedily or by sampling."""
        if self._row.shape != scores.shape:
            self._row = torch.full_like(scores, -torch.inf)
        elif self._step:
            self._row.scatter_(1, self._ids[self._step - 1], -torch.inf)
        self._row.scatter_(1, self._ids[self._step], 0.0)
        self._step += 1
        return self._row


def vocabulary_of(model: Any) -> int:
    """Return how many logits a model most likely has; its config's word where it tells no output layer."""
    try:
        head = model.get_output_embeddings()
    except NotImplementedError:
        head = None
    size = getattr(head, "out_features", None)
    return int(size if size is not None else model.config.get_text_config().vocab_size)


@contextmanager
def looking_first(model: Any, look: Look) -> Iterator[None]:
    """Let a processor see the logits before all those that generate() makes of a configuration.

    There is no public way: what a caller gives comes after penalties and suppressed ids.
    """
    made: Callable[..., Any] = model._get_logits_processor
    model._get_logits_processor = lambda *args, **given: LogitsProcessorList([look, *made(*args, **given)])
    try:
        yield
    finally:
        del model._get_logits_processor
