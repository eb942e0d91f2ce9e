"""The engine of the moment: made when a configuration is due, one at a time, its memory given back before the next."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace

from pytest_infer.engines import lookup
from pytest_infer.engines.base import Engine, EngineOptions, known_context
from pytest_infer.measure.counters import memory
from pytest_infer.records import ModelInfo


class ModelInUse:
    """Makes the engines that the options name.

    `progress` is told what takes long, and `closing` is called before an engine is closed: nobody may hold it then.
    """

    def __init__(self, name: str, progress: Callable[[str], None], closing: Callable[[], None]) -> None:
        self._name = name
        self._progress = progress
        self._closing = closing
        self._made: tuple[EngineOptions, Engine] | None = None
        self._runs_with: EngineOptions | None = None
        self._loaded: ModelInfo | None = None
        self._described: ModelInfo | None = None

    def engine(self, options: EngineOptions) -> Engine:
        """Return the engine for these options; the one for others is closed, so that there is never more than one."""
        if self._made is not None and self._made[0] == options:
            return self._made[1]
        self.close()
        engine = lookup.create(self._name, replace(options, progress=self._progress))
        self._made, self._runs_with = (options, engine), options
        return engine

    def made(self, engine: Engine) -> bool:
        """Return whether an engine is the one that was made here, and not one of a test's own."""
        return self._made is not None and engine is self._made[1]

    def adapt(self, engine: Engine, info: ModelInfo, options: EngineOptions) -> ModelInfo:
        """Let a loaded model go on with options that need no other load, and return its description with them.

        `info` describes it as it was loaded. An engine that a test brought itself is left as it is.
        """
        if not self.made(engine):
            return info
        if self._described is None or info is not self._loaded:
            # The first model of this engine, or another that it adopted.
            self._loaded = self._described = info
        if options != self._runs_with:
            adapted = engine.adapt(replace(options, progress=self._progress))
            self._runs_with = options
            self._described = replace(
                adapted,
                load_s=info.load_s,
                load_read_bytes=info.load_read_bytes,
                load=info.load,
                weights_sha256=info.weights_sha256,
            )
        return self._described

    def context(self, options: EngineOptions) -> int | None:
        """Return the context of the model that options name, from its config; raise ModelError if there is none."""
        engine = self.engine(options)
        engine.check()
        return known_context(engine)

    def close(self) -> None:
        """Free the model, and give its memory back to the system."""
        if self._made is None:
            return
        self._closing()
        self._made[1].close()
        self._made = self._runs_with = self._loaded = self._described = None
        gc.collect()
        memory.trim_heap()
