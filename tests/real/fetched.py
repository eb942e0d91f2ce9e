"""The models that are built from a package of an index, which may be out of reach."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pytest_infer.errors import ModelError


@contextmanager
def skip_without_package() -> Iterator[None]:
    """Skip when the package cannot be had; any other error is a failure of the test."""
    try:
        yield
    except ModelError as error:
        if str(error).startswith("cannot download"):
            pytest.skip(str(error))
        raise
