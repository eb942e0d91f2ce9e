"""Small models of real architectures, made from their configs."""

import pytest
from lazily import Late, torch, transformers
from shell import LOADED

import warm

tokenizers = Late("tokenizers")

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)
COMMON = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
CONFIGS = {
    "mixtral": ("MixtralConfig", {"intermediate_size": 48, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {
            "moe_intermediate_size": 24,
            "intermediate_size": 48,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "head_dim": 8,
        },
    ),
    "olmoe": ("OlmoeConfig", {"intermediate_size": 24, "num_experts": 8, "num_experts_per_tok": 2}),
    "phimoe": ("PhimoeConfig", {"intermediate_size": 24, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "llama": ("LlamaConfig", {"intermediate_size": 64}),
}


@pytest.fixture(autouse=True)
def _one_thread():
    """Keep tiny models on one thread: on two shared cores OpenMP's threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


def tokenizer():
    """Return a byte-level tokenizer: every byte is an id above the two special ones."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<eos>": 0, "<pad>": 1, **{letter: n + 2 for n, letter in enumerate(alphabet)}}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        chat_template=TEMPLATE,
        eos_token="<eos>",
        pad_token="<pad>",
    )


def build(kind, seed=0):
    """Return a tiny model of that architecture with random weights, wide enough apart for a stable greedy output."""
    name, own = CONFIGS[kind]
    torch.manual_seed(seed)
    config = getattr(transformers, name)(**COMMON, **own, initializer_range=0.3)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


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


@pytest.fixture(scope="session", autouse=True)
def _preloaded(model_folder):
    """Load and run a model once before any test: a `pytester` test makes Python forget the modules imported within it.

    Those of torch that such a test was the first to need would then be imported again, and torch refuses to register
    its operators twice ("Only a single TORCH_LIBRARY"). Which modules these are is up to torch and transformers.
    """
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder())
    model.generate(torch.tensor([[3, 4]]), attention_mask=torch.ones(1, 2), max_new_tokens=2, do_sample=False)
