"""What takes seconds to import, imported when a test first uses it: collecting the tests loads no torch."""

import importlib
from typing import Any


class Late:
    """Stands for a module, or for a name of one (`module:name`)."""

    def __init__(self, path: str) -> None:
        self._path = path

    def _found(self) -> Any:
        module, _, name = self._path.partition(":")
        loaded = importlib.import_module(module)
        return getattr(loaded, name) if name else loaded

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("__", "_mock", "_pytest", "pytestmark")):  # what pytest asks of everything in a test module
            raise AttributeError(name)
        return getattr(self._found(), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._found()(*args, **kwargs)


torch = Late("torch")
transformers = Late("transformers")
