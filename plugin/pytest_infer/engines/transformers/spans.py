"""What `generate()` of transformers does beside the model's modules, reported as spans while a step is taken apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial, wraps
from typing import Any

from transformers import Cache, LogitsProcessorList, StoppingCriteriaList

from pytest_infer.engines.base import Clock
from pytest_infer.engines.transformers.running import TickStreamer
from pytest_infer.records import Role

_UPDATES = ("update", "update_conv_state", "update_recurrent_state", "update_indexer")


@contextmanager
def reported(clock: Clock) -> Iterator[None]:
    """Report the cache, the logits processors, the choice of the token, and the stop criteria."""
    sampling = _Sampling(clock)
    with ExitStack() as back:
        for kind in _kinds(Cache):
            for name in set(_UPDATES) & vars(kind).keys():
                _replace(back, kind, name, partial(_spanned, clock=clock, role=Role.CACHE))
        _replace(back, StoppingCriteriaList, "__call__", partial(_spanned, clock=clock, role=Role.STOPPING))
        _replace(back, LogitsProcessorList, "__call__", partial(_spanned, clock=clock, role=Role.PROCESSORS))
        _replace(back, LogitsProcessorList, "__call__", partial(_followed, then=sampling.begin))
        _replace(back, TickStreamer, "put", partial(_followed, then=sampling.end))
        yield


class _Sampling:
    """The span from the processed logits to the token's arrival on the host, which no function is around."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._span: AbstractContextManager[object] | None = None

    def begin(self) -> None:
        self._span = self._clock.span(Role.SAMPLING)
        self._span.__enter__()

    def end(self) -> None:
        if self._span is not None:
            self._span.__exit__(None, None, None)
            self._span = None


def _kinds(kind: type) -> Iterator[type]:
    yield kind
    below: type
    for below in kind.__subclasses__():
        yield from _kinds(below)


def _replace(back: ExitStack, kind: type, name: str, made: Callable[[Any], Any]) -> None:
    own = vars(kind)[name]
    setattr(kind, name, made(own))
    back.callback(setattr, kind, name, own)


def _spanned(own: Callable[..., Any], *, clock: Clock, role: str) -> Callable[..., Any]:
    @wraps(own)
    def call(*args: Any, **kwargs: Any) -> Any:
        with clock.span(role):
            return own(*args, **kwargs)

    return call


def _followed(own: Callable[..., Any], *, then: Callable[[], None]) -> Callable[..., Any]:
    @wraps(own)
    def call(*args: Any, **kwargs: Any) -> Any:
        found = own(*args, **kwargs)
        then()
        return found

    return call
