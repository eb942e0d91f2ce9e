"""Small models of real architectures, made from their configs, and a tokenizer of bytes for them."""

from lazily import Late, torch, transformers

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
