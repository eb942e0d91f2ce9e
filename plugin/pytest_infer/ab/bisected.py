"""pytest's plugin in the runs of `pytest-infer bisect`, which starts them with it: what is collected and imported."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pytest_infer.checkouts.imports import CHECKOUT, TOLD, imported_from
from pytest_infer.pytest_face.options import CHILD
from pytest_infer.pytest_face.preflight import measuring

_OTHER_SIDE = CHILD in os.environ
"""Whether this is the other side of a step's comparison, which gets all arguments too."""


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Tell which tests measure, and where they lie."""
    items = measuring(session.items)
    _tell(
        root=str(session.config.rootpath),
        arguments=list(session.config.args),
        tests=[item.nodeid for item in items],
        files=sorted({str(item.path) for item in items}),
    )


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish() -> None:
    """Tell which modules came from the checkout that is not measured."""
    if CHECKOUT in os.environ:
        _tell(foreign=imported_from(Path(os.environ[CHECKOUT])))


def _tell(**what: object) -> None:
    path = Path(os.environ[TOLD])
    if not _OTHER_SIDE:
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        path.write_text(json.dumps({**known, **what}), encoding="utf-8")
