"""What the command of a server that is started gets for its model."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from pytest_infer import untrusted
from pytest_infer.engines import models
from pytest_infer.engines.base import EngineOptions
from pytest_infer.engines.checkpoint import hashes, source
from pytest_infer.engines.server import command
from pytest_infer.errors import ModelError


class Given:
    """The model of the options, as a command gets it."""

    def __init__(self, options: EngineOptions) -> None:
        self._name, self._progress, server = options.model, options.progress, options.server
        self._command = "" if server is None or server.command is None else f"{server.command} {server.flags}"

    @cached_property
    def model(self) -> str:
        """Return what stands for {model}: of a bundled one its folder, else what was given, its ~ as a shell has it."""
        if self._name in models.BUNDLED:
            return models.resolve(self._name, self._progress)
        return str(models.expanded(self._name)) if self._name.startswith("~") else self._name

    @cached_property
    def gguf(self) -> str:
        """Return what stands for {gguf}: the file, that of a bundled one written first; ModelError where it is none."""
        try:
            path = models.gguf(self._name, "auto", self._progress)
            source.of_gguf(path)
        except ModelError as error:
            raise ModelError(f"{command.GGUF} in the command of a server: {error}") from None
        return str(path)

    @property
    def path(self) -> str:
        """Return the one of them that the command has."""
        return self.gguf if command.GGUF in self._command else self.model

    def files(self) -> tuple[Path, ...]:
        """Return the weights' files of the model, where the command gets one that is here."""
        if not self._command:
            return ()
        path = Path(self.path)
        held = hashes.files(path) if untrusted.is_dir(path) else source.parts(path)
        return tuple(file.resolve() for file in held if untrusted.is_file(file))
