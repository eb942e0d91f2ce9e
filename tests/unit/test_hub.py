"""A hub that cannot be reached is seen by one request, and what is in its cache is taken from there."""

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError

from pytest_infer.engines.checkpoint import hub, source
from pytest_infer.errors import ModelError

HTTP_ERROR = next(kind for kind in HfHubHTTPError.__bases__ if not issubclass(kind, OSError))


@pytest.fixture
def online(monkeypatch, tmp_path):
    """Return a function: what the hub answers with to the list of what it is asked."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))

    def answering(answer):
        asked = []

        class Session:
            def head(self, url, **given):
                asked.append(url)
                if isinstance(answer, Exception):
                    raise answer
                return type("Response", (), {"status_code": answer})()

        monkeypatch.setattr(huggingface_hub, "get_session", Session)
        return asked

    return answering


@pytest.fixture
def cached(tmp_path):
    """Put the config of owner/name into the hub's cache."""
    folder = tmp_path / "models--owner--name"
    snapshot = folder / "snapshots" / ("c0ffee" + "0" * 34)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(snapshot.name)
    (snapshot / "config.json").write_text('{"model_type": "llama"}')


UNREACHABLE = pytest.mark.parametrize(
    ("answer", "says"),
    [
        (HTTP_ERROR("no\nroute"), "no route"),
        (ConnectionError("refused"), "refused"),
        (TimeoutError(), "TimeoutError"),
        (502, "it answers 502"),
        (503, "it answers 503"),
    ],
    ids=str,
)


@UNREACHABLE
def test_it_is_one_line_after_one_request(online, answer, says):
    asked = online(answer)
    with pytest.raises(ModelError) as caught:
        hub.only_cached("owner/name", "v1")
    assert str(caught.value).startswith(f"owner/name: the hub cannot be reached ({says}): give a folder")
    assert len(asked) == 1
    assert asked[0].endswith("/owner/name/resolve/v1/config.json")


@UNREACHABLE
@pytest.mark.usefixtures("cached")
def test_what_the_cache_holds_is_taken_from_there(online, answer, says):
    online(answer)
    assert hub.only_cached("owner/name")


@pytest.mark.parametrize("answer", [200, 302, 401, 404])
def test_whatever_else_it_answers_is_for_its_library(online, answer):
    online(answer)
    assert not hub.only_cached("owner/name")


def test_offline_asks_nobody(online, monkeypatch, cached):
    asked = online(200)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not hub.only_cached("owner/name")
    with pytest.raises(
        ModelError, match="owner/other: cannot be loaded: it is not in the hub's cache, and HF_HUB_OFFLINE is set"
    ):
        hub.only_cached("owner/other")
    assert not asked


def test_what_is_no_hub_id_is_one_line(online):
    online(200)
    with pytest.raises(ModelError, match="own er/name: no hub id: "):
        hub.only_cached("own er/name")


@pytest.mark.usefixtures("cached")
def test_a_doctor_needs_more_than_the_config(online, monkeypatch):
    online(ConnectionError("refused"))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", None)
    with pytest.raises(ModelError, match="its cache does not hold the weights"):
        source.find("owner/name")
