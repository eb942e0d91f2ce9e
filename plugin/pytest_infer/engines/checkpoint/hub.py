"""Whether the hub can be reached for a model: asked once, before its library tries for most of a minute."""

from __future__ import annotations

from pytest_infer import untrusted
from pytest_infer.errors import ModelError

_UNAVAILABLE = 500
"""The first status by which a server or a proxy says that it cannot answer."""


def only_cached(name: str, revision: str | None = None) -> bool:
    """Return whether a hub model is to be taken from the cache alone, because the hub does not answer.

    False as well where the library is told to stay offline, which it then does by itself.

    Raises:
        ModelError: the hub does not answer, and the cache does not hold the model.
    """
    # Imported late: only a model from the hub needs it.
    from huggingface_hub import constants, try_to_load_from_cache  # noqa: PLC0415
    from huggingface_hub.errors import HFValidationError  # noqa: PLC0415

    try:
        cached = isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str)
    except HFValidationError as error:
        raise ModelError(f"{name}: no hub id: {untrusted.reason(error)}") from None
    if constants.HF_HUB_OFFLINE:
        if not cached:
            raise ModelError(
                f"{name}: cannot be loaded: it is not in the hub's cache, and HF_HUB_OFFLINE is set: leave that out, "
                "or give a folder"
            )
        return False
    problem = _problem(name, revision)
    if problem is not None and not cached:
        raise ModelError(
            f"{name}: the hub cannot be reached ({problem}): give a folder, or a model that is in its cache"
        )
    return problem is not None


def _problem(name: str, revision: str | None) -> str | None:
    """Return why the hub does not answer; None if it does, whatever it says of the model."""
    from huggingface_hub import constants, get_session, hf_hub_url  # noqa: PLC0415

    try:
        url = hf_hub_url(name, "config.json", revision=revision)
        answer = get_session().head(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except failures() as error:
        return untrusted.reason(error)
    return f"it answers {answer.status_code}" if answer.status_code >= _UNAVAILABLE else None


def failures() -> tuple[type[Exception], ...]:
    """Return what is raised where the hub cannot be asked."""
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415

    # OSError, and the error of whichever HTTP library this version of huggingface_hub is made with.
    return tuple(kind for kind in HfHubHTTPError.__bases__ if issubclass(kind, Exception))
