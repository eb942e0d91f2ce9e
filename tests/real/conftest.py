"""The small models of `tiny`, loaded and in folders."""

import pytest
from lazily import Late, torch, transformers
from shell import LOADED
from tiny import build, tokenizer

import warm
from pytest_infer.engines.base import EngineOptions

TransformersEngine = Late("pytest_infer.engines.transformers.engine:TransformersEngine")


@pytest.fixture(autouse=True)
def _one_thread():
    """Keep tiny models on one thread: on two shared cores OpenMP's threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _little_garbage():
    """Spare each measurement its walks through all of torch."""
    with warm.apart_from_what_is_loaded():
        yield


@pytest.fixture(scope="session")
def warm_torch():
    """A process that has torch and transformers loaded, for the processes that tests start."""
    made = warm.Warm(*LOADED, environment={"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})
    yield made
    made.close()


@pytest.fixture
def forked(pytester, warm_torch, monkeypatch):
    """`pytester` whose processes of pytest are children of one that has torch loaded."""
    return warm.forking(pytester, warm_torch, monkeypatch)


@pytest.fixture
def other_model():
    """Return a model with other weights than those of `model_folder`, and its tokenizer."""
    return build("mixtral", seed=5), tokenizer()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """Return a function: architecture to a folder that `from_pretrained` loads."""
    made = {}

    def folder(kind="mixtral"):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            build(kind).save_pretrained(made[kind])
            tokenizer().save_pretrained(made[kind])
        return made[kind]

    return folder


@pytest.fixture
def engine_of(model_folder):
    """Return a function: architecture to an engine with a tiny model of it."""
    made = []

    def make(kind):
        made.append(TransformersEngine(EngineOptions(model=str(model_folder(kind)))))
        made[-1].load()
        return made[-1]

    yield make
    for engine in made:
        engine.close()


@pytest.fixture(scope="session", autouse=True)
def _preloaded(model_folder):
    """Load and run a model once before any test: a `pytester` test makes Python forget the modules imported within it.

    Those of torch that such a test was the first to need would then be imported again, and torch refuses to register
    its operators twice ("Only a single TORCH_LIBRARY"). Which modules these are is up to torch and transformers.
    """
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder())
    model.generate(torch.tensor([[3, 4]]), attention_mask=torch.ones(1, 2), max_new_tokens=2, do_sample=False)
