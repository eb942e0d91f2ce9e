"""The distribution of the next token at each generated position, and whose tokens a generation followed."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_infer.records.experts import ExpertUsage

TOP = 64
"""So many of the most probable tokens are kept at each position."""

LEAST = -700.0
"""What the log-probability of a token that a model rules out counts as: its own is not finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What a model gave as the next token at each of `positions` generated positions, of each of `sequences`.

    All are natural logarithms of probabilities, by a softmax in float32 of the logits as the model returned them:
    before temperature, penalties and whatever else shapes them. Arrays in C order, little-endian:

    - `tokens` (int32; sequences, positions): the ids that were generated, chosen or followed;
    - `chosen` (float32; sequences, positions): the log-probability of each of them;
    - `top_ids` (int32) and `top` (float32; both sequences, positions, width): the most probable ids, highest first,
      and their log-probabilities; `width` is 64, or all of a smaller vocabulary;
    - `rest` (float32; sequences, positions): the logarithm of what all others have together, −∞ where there are none.

    A position whose logits hold NaN or +∞, or nothing finite, is NaN in `chosen`, `top` and `rest`. Of a large
    batch the first sequences alone are kept.
    """

    sequences: int
    positions: int
    width: int
    vocabulary: int
    tokens: bytes
    chosen: bytes
    top_ids: bytes
    top: bytes
    rest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Whose tokens the rounds of a prompt followed, and what the reference itself made of them.

    `name` is a stored run's label, or a commit as --infer-against has it. `tokens` are the ids it had generated (of a
    batch its first sequence), and `free` those that this side generates when nothing is given to it, as `Output` says
    too. The profile round followed `tokens`, unless `problem` says why not; the timed rounds did where `timed`: when
    `free` are others, so that both sides do the same work.

    `scores` and `experts` (with its trace) are the reference's own, of `tokens`; `dtype` is that of its weights. `kl`
    is the Kullback-Leibler divergence of the reference's distribution from this side's at each position, nats
    (float64, little-endian; positions), over the whole vocabulary; None where only the stored part of both is known:
    in an A/B run for the reason `kl_absent`.
    """

    name: str
    tokens: tuple[int, ...]
    free: tuple[int, ...]
    timed: bool = False
    problem: str | None = None
    scores: Scores | None = None
    scores_absent: str | None = None
    experts: ExpertUsage | None = None
    kl: bytes | None = None
    kl_absent: str | None = None
    dtype: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TextScore:
    """How well a model predicts a fixed text: `nll` is the mean negative log-likelihood of `tokens` of them, nats.

    The text is cut into windows of `window` tokens, each beginning `stride` after the one before; of each window the
    tokens are counted that the one before had not reached. The very first token of the text is predicted by none.
    `name` is the file's, `sha256` that of its text in UTF-8, with line feeds, whatever system wrote it.
    """

    name: str
    sha256: str
    tokens: int
    nll: float
    window: int
    stride: int
