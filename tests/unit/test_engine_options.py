"""What an engine option needs: its docs, its place in the stored model and the fingerprint, and its way into `load`."""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from pytest_infer.analysis.compare import fingerprint
from pytest_infer.cli.main import app
from pytest_infer.engines.base import EngineOptions, Sampling, ServerOptions
from pytest_infer.errors import ModelError
from pytest_infer.measure.loading import process
from pytest_infer.measure.loading.process import LoadingRequest
from pytest_infer.pytest_face.options import OPTIONS
from pytest_infer.records import CacheState, ModelInfo

DOCS = Path(__file__).parents[2] / "docs"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an option is found. `stored` is what two values of it make of the model's record, and `fact` tells them.

    `other` is another value than the default. `same_work` and `not_in_load` say why there is no place for it.
    """

    other: object
    option: str = ""
    stored: tuple[dict, dict] = ({}, {})
    fact: str = ""
    load: str = ""
    same_work: str = ""
    not_in_load: str = ""


SAMPLED = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "seed": 3}
ONE_TOKEN = "a load generates one token, greedily, and once more"
BY_WEIGHTS = ({"weights_sha256": "a" * 64}, {"weights_sha256": "b" * 64})
PLACES = {
    "model": Place(option="model", other="owner/name", stored=BY_WEIGHTS, fact="weights", load="--model"),
    "revision": Place(option="revision", other="v2", stored=BY_WEIGHTS, fact="weights", load="--revision"),
    "dtype": Place(
        option="dtype", other="bfloat16", stored=({"dtype": "float32"}, {"dtype": "bfloat16"}), fact="dtype",
        load="--dtype",
    ),
    "device": Place(
        option="device", other="cuda", stored=({"device": "cpu"}, {"device": "cuda:0"}), fact="device", load="--device"
    ),
    "threads": Place(
        option="threads", other=3, stored=({"threads": 2}, {"threads": 3}), fact="threads", load="--threads"
    ),
    "experts_implementation": Place(
        option="experts-implementation", other="eager",
        stored=({"experts_implementation": "grouped_mm"}, {"experts_implementation": "eager"}),
        fact="experts_implementation", load="--experts-implementation",
    ),
    "attention": Place(
        option="attention", other="eager", stored=({"attention": "sdpa"}, {"attention": "eager"}), fact="attention",
        load="--attention",
    ),
    "use_cache": Place(
        option="no-cache", other=False,
        stored=({"generation": {"use_cache": True}}, {"generation": {"use_cache": False}}), fact="generation",
        not_in_load=ONE_TOKEN,
    ),
    "sampling": Place(
        option="sample", other=Sampling(temperature=0.7, top_p=0.9, seed=3),
        stored=({"generation": {"do_sample": False, "seed": 0}}, {"generation": SAMPLED}), fact="generation",
        not_in_load=ONE_TOKEN,
    ),
    "compile": Place(
        option="compile", other=True,
        stored=({"generation": {"compile": False}}, {"generation": {"compile": True}}), fact="generation",
        not_in_load="what is compiled is decoding, after the load",
    ),
    "trust_remote_code": Place(
        option="trust-remote-code", other=True, stored=({}, {"remote_code": "owner.name.0a1b.modeling"}),
        fact="remote_code", load="--trust-remote-code",
    ),
    "quantization": Place(
        option="quantization", other="int8", stored=({}, {"quantization": "int8"}), fact="quantization",
        load="--quantization",
    ),
    "server": Place(
        option="server", other=ServerOptions(url="http://127.0.0.1:8080"),
        stored=({"generation": {"prompt_cache": "bust"}}, {"generation": {"prompt_cache": "warm"}}), fact="generation",
        not_in_load="a server loads its model itself",
    ),
    "engine_args": Place(
        option="engine-args", other="-ctk q8_0", stored=({"engine_args": "-ctk f16"}, {"engine_args": "-ctk q8_0"}),
        fact="engine_args", load="--engine-args",
    ),
    "progress": Place(
        other=print, same_work="told before a model is built or hashed, and never in a round",
        not_in_load="a function of the process that asks",
    ),
}  # fmt: skip
OPTIONS_OF = {name: place for name, place in PLACES.items() if place.option}
CHANGING = {name: place for name, place in PLACES.items() if not place.same_work}


def default(name):
    return getattr(EngineOptions(model="m"), name)


def test_every_option_has_its_places():
    assert list(PLACES) == [field.name for field in dataclasses.fields(EngineOptions)]
    assert all(place.other != default(name) for name, place in PLACES.items())


def test_only_what_no_option_sets_has_none():
    assert [name for name in PLACES if name not in OPTIONS_OF] == ["progress"]
    assert {place.option for place in OPTIONS_OF.values()} <= {option.name for option in OPTIONS}


@pytest.mark.skipif(not DOCS.exists(), reason="the wheel is tested without docs/")
@pytest.mark.parametrize("name", OPTIONS_OF)
def test_a_page_names_the_option(name):
    named = rf"--infer-{OPTIONS_OF[name].option}\b(?!-)"
    assert any(re.search(named, page.read_text(encoding="utf-8")) for page in DOCS.glob("*.md"))


@pytest.mark.parametrize("name", CHANGING)
def test_two_values_are_not_the_same_work(make_row, name):
    place = CHANGING[name]
    known = {field.name for field in dataclasses.fields(ModelInfo)}
    assert {key for model in place.stored for key in model} <= known
    before, after = (make_row(model=model) for model in place.stored)
    (difference,) = fingerprint.differences(before, after)
    assert difference.key == place.fact


@pytest.mark.parametrize("name", PLACES)
def test_a_load_takes_it_or_says_why_not(name, asked):
    place = PLACES[name]
    assert bool(place.load) != bool(place.not_in_load)
    known = {word for parameter in typer.main.get_command(app).commands["loading"].params for word in parameter.opts}
    if place.load:
        assert place.load in known
        given = [place.load] if place.other is True else [place.load, str(place.other)]
        assert getattr(asked(*given), name) == place.other
    else:
        assert f"--{place.option}" not in known


def test_the_loading_process_is_given_every_option():
    options = EngineOptions(**{name: place.other for name, place in PLACES.items()})
    request = LoadingRequest(cache=CacheState.COLD, engine="e", options=options)
    arrived = process.decode(process.encode(request))
    assert arrived.options == dataclasses.replace(options, progress=default("progress"))
    assert (arrived.cache, arrived.engine) == (request.cache, request.engine)


@pytest.fixture
def asked(monkeypatch):
    """Return a function that runs `pytest-infer loading` and returns the engine options it asks a process for."""
    requests = []

    def ask(request, tell):
        requests.append(request)
        raise ModelError("enough")

    monkeypatch.setattr(process, "ask", ask)
    monkeypatch.setattr("pytest_infer.cli.loading.sys.platform", "linux")

    def run(*arguments):
        result = CliRunner().invoke(app, ["loading", *arguments])
        assert requests, result.output
        return requests[0].options

    return run
