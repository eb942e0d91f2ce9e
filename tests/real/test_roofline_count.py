"""The bytes of a step and the operations of a prefill against counts that share no code with them."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import tiny_moe
from fetched import skip_without_package
from lazily import Late, torch, transformers

from asked import asked
from pytest_infer.engines import models
from pytest_infer.engines.base import EngineOptions
from pytest_infer.measure import rounds
from pytest_infer.measure.counters.snapshot import SystemCounters
from pytest_infer.measure.machine import description, probe
from pytest_infer.metrics import roofline, summarize
from pytest_infer.records import Limits, MachineProbe, PromptRecord

FlopCounterMode = Late("torch.utils.flop_counter:FlopCounterMode")
running = Late("pytest_infer.engines.transformers.running")
work = Late("pytest_infer.engines.transformers.work")
TransformersEngine = Late("pytest_infer.engines.transformers.engine:TransformersEngine")

pytestmark = pytest.mark.real
DATA = Path(__file__).parents[1] / "data"
IDS = [5, 9, 14, 30, 77, 12, 201, 8, 41, 41, 90]
LIMITS = Limits(max_new_tokens=12, ignore_eos=True)
KINDS = ("mixtral", "qwen3_moe", "olmoe", "phimoe", "llama")


class Touched:
    """Notes which rows of which parameters each forward of a model uses, by hooks on its modules."""

    def __init__(self, model):
        self.model = model
        self.steps = []  # bytes of each forward of one token
        self.rows = {}  # id of a parameter: (parameter, rows of it that this forward used)

    def __enter__(self):
        modules = [m for m in self.model.modules() if m is not self.model]
        self.handles = [m.register_forward_pre_hook(self.see, with_kwargs=True) for m in modules]
        self.handles.append(self.model.register_forward_pre_hook(lambda *_: self.rows.clear()))
        self.handles.append(self.model.register_forward_hook(self.end, with_kwargs=True))
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()

    def see(self, module, args, kwargs):
        # A router may take the weights of a layer that it holds.
        for parameter in module.parameters(recurse=type(module).__name__.endswith("Router")):
            rows = set(range(parameter.shape[0]))
            if isinstance(module, torch.nn.Embedding):
                rows = set((args[0] if args else kwargs["input"]).flatten().tolist())
            elif type(module).__name__.endswith("Experts"):
                rows = set((args[1] if len(args) > 1 else kwargs["top_k_index"]).flatten().tolist())
                # Ids from there on are identity experts.
                rows = {row for row in rows if row < getattr(module, "num_routed_experts", len(parameter))}
            self.rows.setdefault(id(parameter), (parameter, set()))[1].update(rows)

    def end(self, _model, args, kwargs, output):
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        if ids.shape[1] > 1:
            return
        weights = sum(len(rows) * p[0].numel() * p.element_size() for p, rows in self.rows.values())
        cache = [t for layer in output.past_key_values.layers for t in (layer.keys, layer.values)]
        self.steps.append(weights + sum(t.numel() * t.element_size() for t in cache))


def measured(engine, info, new_probe=None, ids=IDS):
    """Return the record of one timed and one profile round."""
    system = SystemCounters()
    runner = rounds.Runner(engine=engine, asking=asked(ids), limits=LIMITS, system=system, usable_cores=1.0)
    found = rounds.measure(runner, rounds.RoundPlan(warmup=1, rounds=2, profile=True, experts=True), lambda *_: None)
    system.close()
    golden = msgspec.json.decode(DATA.joinpath("record-1.json").read_bytes(), type=PromptRecord)
    here = dataclasses.replace(description.describe(), probe=new_probe)
    return dataclasses.replace(golden, model=info, machine=here, rounds=found.rounds, profile=found.profile)


def touched(engine, ids=IDS):
    """Return the mean bytes of a decode step of the same generation."""

    class Deaf:
        def tick(self, ids):
            pass

        def prefilled(self):
            pass

    engine.reset()
    with Touched(engine.running.model) as counted:
        engine.generate(ids, LIMITS, Deaf())
    assert len(counted.steps) == LIMITS.max_new_tokens - 1
    return sum(counted.steps) / len(counted.steps)


def loaded(source, **options):
    engine = TransformersEngine(EngineOptions(model=str(source), **options))
    return engine, engine.load()


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_of_a_step_are_those_that_modules_touch(model_folder, kind):
    engine, info = loaded(model_folder(kind))
    read = roofline.step(measured(engine, info))
    assert read.value == pytest.approx(touched(engine), rel=1e-3)
    everything = info.parameter_bytes
    assert read.value < everything
    engine.close()


def test_a_tied_head_is_read_in_full(other_model):
    config = transformers.LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        tie_word_embeddings=True, eos_token_id=0, pad_token_id=1, bos_token_id=None,
    )  # fmt: skip
    engine = TransformersEngine(EngineOptions(model="reference-moe"))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    info = engine.adopt(model, other_model[1])
    assert info.work.read_bytes == info.parameter_bytes
    assert roofline.step(measured(engine, info)).value == pytest.approx(touched(engine), rel=1e-3)
    engine.close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_reference_model(dtype):
    engine, info = loaded("reference-moe", dtype=dtype)
    made = MachineProbe(
        threads=1,
        read_bandwidth=1e11,
        read_bandwidth_spread=0.03,
        flops={"float32": 1e12, "bfloat16": 1e12},
        caches={},
        at_ns=1,
    )
    record = measured(engine, info, made)
    found = summarize(record)
    assert found["step_bytes"].value == pytest.approx(touched(engine), rel=0.01)
    assert 0 < found["mbu"].value < 1
    assert 0 < found["mfu"].value < 1
    steps = found["decode_ceiling"].value * found["step_bytes"].value
    assert steps == pytest.approx(1e11)
    engine.close()


@pytest.mark.slow
def test_the_upcycled_model():
    with skip_without_package():
        models.resolve("smollm2-moe", print)
    engine, info = loaded("smollm2-moe", dtype="bfloat16")
    assert roofline.step(measured(engine, info)).value == pytest.approx(touched(engine), rel=0.01)
    engine.close()


@pytest.mark.parametrize("kind", KINDS)
def test_the_operations_of_a_prefill_are_those_that_torch_counts(model_folder, kind):
    engine, info = loaded(
        model_folder(kind), attention="eager", experts_implementation="eager" if kind != "llama" else None
    )
    usage = measured(engine, info).profile.experts
    flops = roofline.prefill_flops(info.work, usage, len(IDS))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        engine.running.model(torch.tensor([IDS]), logits_to_keep=1)
    # Eager attention multiplies all pairs, masked ones too.
    pairs = info.work.pair_flops + info.work.window_pair_flops
    n = len(IDS)
    in_full = flops - pairs * roofline.attended_pairs(n) + pairs * n * n
    assert in_full == pytest.approx(counter.get_total_flops(), rel=0.01)
    engine.close()


@pytest.mark.parametrize("kind", ["longcat_flash", "doge"])
def test_experts_beside_identity_ones_and_in_tables_count_as_they_are_selected(kind, other_model):
    engine = TransformersEngine(EngineOptions(model="reference-moe"))
    model, ids = tiny_moe.build(kind), [n % tiny_moe.VOCABULARY for n in IDS]
    model.set_attn_implementation("eager")
    info = engine.adopt(model, other_model[1])
    record = measured(engine, info, ids=ids)
    assert roofline.step(record).value == pytest.approx(touched(engine, ids), rel=1e-3)
    flops = roofline.prefill_flops(info.work, record.profile.experts, len(ids))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.tensor([ids]), logits_to_keep=1)
    n = len(ids)
    in_full = flops + info.work.pair_flops * (n * n - roofline.attended_pairs(n))
    assert in_full == pytest.approx(counter.get_total_flops(), rel=0.01)
    engine.close()


# how modules are counted


def bare_linear(inputs, outputs):
    """Return a module that has nothing of a linear layer but its sizes."""
    made = torch.nn.Module()
    made.in_features, made.out_features = inputs, outputs
    return made


def packed_linear(inputs, outputs, *, bias=False):
    """Return a linear layer that keeps whole numbers as buffers, as GPTQ's does."""
    made = bare_linear(inputs, outputs)
    made.register_buffer("qweight", torch.zeros(inputs // 8, outputs, dtype=torch.int32))
    made.register_buffer("scales", torch.zeros(inputs // 8, outputs, dtype=torch.float16))
    made.register_buffer("bias", torch.zeros(outputs) if bias else None)
    return made


def bytes_of_two(inputs, outputs, *, bias=False):
    """Return a linear layer whose weight is a parameter of bytes with two weights each, as bitsandbytes has it."""
    made = torch.nn.Linear(inputs, outputs, bias=bias)
    held = torch.zeros(inputs * outputs // 2, 1, dtype=torch.uint8)
    made.weight = torch.nn.Parameter(held, requires_grad=False)
    return made


def named_otherwise(inputs, outputs, *, bias=False):
    """Return a linear layer with its weights and scales under other names, as compressed-tensors has them."""
    made = torch.nn.Linear(inputs, outputs, bias=bias)
    del made.weight
    held = torch.zeros(outputs, inputs // 8, dtype=torch.int32)
    made.weight_packed = torch.nn.Parameter(held, requires_grad=False)
    made.weight_scale = torch.nn.Parameter(torch.zeros(outputs, 1))
    return made


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("made", [packed_linear, bytes_of_two, named_otherwise])
def test_packed_weights_count_as_many_as_they_are(other_model, made, bias):
    model = other_model[0]
    plain = work.parameters(model)
    assert plain == model.num_parameters()
    for layer in model.model.layers:
        layer.self_attn.q_proj = made(32, 32, bias=bias)
    assert work.parameters(model) == plain + (32 * 3 if bias else 0)


def test_a_layer_around_another_has_no_weights_of_its_own(other_model):
    model = other_model[0]
    plain, attention = work.parameters(model), model.model.layers[0].self_attn
    wrapped = bare_linear(32, 32)
    wrapped.base_layer, wrapped.added = attention.q_proj, torch.nn.Linear(32, 4, bias=False)
    attention.q_proj = wrapped
    assert work.parameters(model) == plain + 32 * 4


def test_weights_that_nothing_counts_are_not_told(other_model):
    engine = TransformersEngine(EngineOptions(model="reference-moe"))
    experts = other_model[0].model.layers[0].mlp.experts
    held = torch.zeros(4, 48, 16, dtype=torch.uint8)
    experts.down_proj = torch.nn.Parameter(held, requires_grad=False)
    info = engine.adopt(*other_model)
    assert info.parameters is None
    assert info.parameter_bytes is not None
    engine.close()


@pytest.mark.parametrize(("own", "named"), [({"quant_method": "gptq"}, "gptq"), ("bnb", "bitsandbytes"), (None, None)])
def test_the_method_of_weights_that_are_stored_quantised_is_named(other_model, own, named):
    engine = TransformersEngine(EngineOptions(model="reference-moe"))
    if own is not None:
        own = transformers.BitsAndBytesConfig(load_in_4bit=True) if own == "bnb" else own
        other_model[0].config.quantization_config = own
    assert engine.adopt(*other_model).quantization == named
    engine.close()


def test_packed_weights_count_as_stored_and_multiply_in_full(other_model):
    model = other_model[0]
    plain = work.of(model)
    attention = model.model.layers[0].self_attn
    attention.q_proj = packed_linear(32, 32)
    packed = work.of(model)
    assert packed.parameters == plain.parameters
    assert packed.read_bytes == plain.read_bytes - 32 * 32 * 4 + 4 * 32 * 4 + 4 * 32 * 2


def test_scales_beside_a_parameter_count_as_stored():
    class State:
        absmax, code, offset = torch.zeros(4), torch.zeros(16), None
        state2 = None

    parameter = torch.nn.Parameter(torch.zeros(64, 1, dtype=torch.uint8), requires_grad=False)
    assert work.stored_bytes(parameter) == 64
    parameter.quant_state = State()
    assert work.stored_bytes(parameter) == 64 + 16 + 64


def test_packed_experts_leave_the_operations_untold(other_model):
    model = other_model[0]
    experts = model.model.layers[0].mlp.experts
    name = next(name for name, _ in experts.named_parameters())
    shape = getattr(experts, name).shape
    setattr(experts, name, torch.nn.Parameter(torch.zeros(shape, dtype=torch.uint8), requires_grad=False))
    assert work.of(model).parameters is None


def test_windows_and_latent_attention():
    mistral = transformers.MistralConfig(
        hidden_size=32, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=3, sliding_window=16
    )
    assert work._attention(mistral) == (0, 3 * 2 * 4 * 16, 16)
    mixed = transformers.Gemma3TextConfig(
        hidden_size=32, num_attention_heads=4, num_hidden_layers=6, head_dim=8, sliding_window=16
    )
    full, short, window = work._attention(mixed)
    assert (full, short, window) == (2 * 4 * 16, 5 * 2 * 4 * 16, 16)
    latent = transformers.DeepseekV3Config(
        hidden_size=32, num_attention_heads=4, num_hidden_layers=2, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=6
    )
    assert work._attention(latent) == (2 * 2 * 4 * (12 + 6), 0, None)


def test_heads_and_sizes_that_differ_between_layers_or_of_keys_and_values():
    plain = {"num_attention_heads": 4, "num_hidden_layers": 2, "hidden_size": 32, "head_dim": 8, "sliding_window": 16}
    layers = {"layer_types": ["full_attention", "sliding_attention"]}
    mimo = transformers.MiMoV2FlashConfig(**plain, **layers, v_head_dim=6)
    assert work._attention(mimo) == (2 * 4 * (8 + 6), 2 * 4 * (8 + 6), 16)
    laguna = transformers.LagunaConfig(**plain, **layers, num_attention_heads_per_layer=[4, 6])
    assert work._attention(laguna) == (2 * 4 * 16, 2 * 6 * 16, 16)
    inkling = tiny_moe.configuration("inkling_text").get_text_config()
    inkling.layer_types, inkling.swa_num_attention_heads, inkling.swa_head_dim = ["hybrid", "hybrid_sliding"], 6, 4
    assert work._attention(inkling) == (2 * 4 * 16, 2 * 6 * 8, 64)


def test_a_layer_in_chunks_is_told_from_a_sliding_window():
    assert work.of(tiny_moe.build("llama4_text")).chunked
    assert not work.of(tiny_moe.build("mimo_v2_flash")).chunked


@pytest.mark.parametrize(
    ("kinds", "pairs"),
    [
        (["hybrid", "mamba", "attention"], (2 * 2 * 4 * 16, 0, None)),
        (["full_attention", "linear_attention", "conv"], (2 * 4 * 16, 0, None)),
        (["full_attention", "indexed_attention", "conv"], None),
    ],
)
def test_layers_that_attend_otherwise(kinds, pairs):
    config = SimpleNamespace(num_attention_heads=4, num_hidden_layers=3, hidden_size=32, layer_types=kinds)
    assert work._attention(config) == pairs


def test_a_tower_for_images_is_not_read(other_model):
    model = other_model[0]
    plain = work.of(model)
    model.model.vision_tower = torch.nn.ModuleDict({"experts": torch.nn.Linear(32, 64), "patch": packed_linear(32, 32)})
    assert work.of(model) == plain


def test_quantised_weights_have_the_size_that_they_are_stored_in(other_model):
    engine = TransformersEngine(EngineOptions(model="reference-moe"))
    model = other_model[0]
    plain = engine.adopt(model, other_model[1]).parameter_bytes
    model.model.norm.weight.quant_state = SimpleNamespace(absmax=torch.zeros(4), code=None, offset=None, state2=None)
    assert engine.adopt(model, other_model[1]).parameter_bytes == plain + 16
    engine.close()


def test_the_devices_of_a_split_model(other_model):
    model = other_model[0]
    assert running._devices(model) == "cpu"
    model.model.norm.to("meta")
    assert running._devices(model) == "cpu, meta"
    held = [SimpleNamespace(device=name) for name in ("cpu", "cuda:1", "cuda:0", "cpu")]
    assert running._devices(SimpleNamespace(parameters=lambda: held)) == "cuda:0, cuda:1, cpu"


def test_an_encoder_with_a_decoder_is_not_told():
    config = transformers.T5Config(vocab_size=30, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    assert work.of(transformers.T5ForConditionalGeneration(config)) is None


# the real probe


def test_the_real_probe():
    made = probe.measure(1)
    assert isinstance(made, MachineProbe)
    assert made.threads == 1
    # A machine that reads a byte a second or a petabyte a second is a mistake of units.
    assert 1e8 < made.read_bandwidth < 1e13
    assert 0 <= made.read_bandwidth_spread < 5
    assert set(made.flops) == set(probe.DTYPES)
    assert all(1e7 < rate < 1e15 for rate in made.flops.values())
    again = probe.measure(1, flops={"float32": 1.0})
    assert again.flops == {"float32": 1.0}


@pytest.mark.gpu
def test_the_real_probe_and_memory_of_a_gpu(model_folder):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    engine, info = loaded(model_folder("mixtral"), device="cuda")
    made = probe.measure(1, info.device)
    assert made.read_bandwidth > 1e10
    record = measured(engine, info, made)
    peak = record.rounds[0].counters.device_peak_bytes.value
    assert peak >= info.parameter_bytes
    assert summarize(record)["mbu"].value > 0
    engine.close()
