"""Scores of generated positions: against worked values, and against a forward pass made independently."""

import math
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import tiny_moe
from fetched import skip_without_package
from lazily import Late, torch, transformers
from tiny import build, tokenizer

from asked import asked
from pytest_infer.engines.base import EngineOptions, Sampling
from pytest_infer.measure.clock import TokenClock
from pytest_infer.measure.counters.snapshot import SystemCounters
from pytest_infer.measure.rounds import Runner, timed_round
from pytest_infer.records import Limits, StopReason

scoring = Late("pytest_infer.engines.transformers.scores")

pytestmark = pytest.mark.real

# What each of four tokens is followed by. A greedy text from 0 is 1, 2, 0, 1, …
CHAIN = [
    [0.125, 0.5, 0.25, 0.125],
    [0.1, 0.2, 0.4, 0.3],
    [0.7, 0.1, 0.15, 0.05],
    [0.05, 0.05, 0.3, 0.6],
]


def chain(rows):
    """Return a model by which the next token depends on the last one alone, with these probabilities."""
    size = len(rows)
    config = transformers.LlamaConfig(
        vocab_size=size, hidden_size=size, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=512, rms_norm_eps=0.0, bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        # The norm makes sqrt(size) of a single 1.
        model.lm_head.weight.copy_(torch.tensor(rows, dtype=torch.float64).log().T / math.sqrt(size))
    return model


def dirichlet(size):
    return np.random.default_rng(3).dirichlet([0.2] * size, size) * 0.9 + 0.1 / size


def engine_of(model, **options):
    from pytest_infer.engines.transformers.engine import TransformersEngine

    made = TransformersEngine(EngineOptions(model="none", **options))
    made.adopt(model, tokenizer())
    return made


def generated(engine, ids, limits, *, follow=None):
    """Return ids and scores of one generation, and why it ended."""
    clock = TokenClock()
    engine.follow(follow)
    engine.keep_scores(keep=True)
    engine.reset()
    engine.prepare(ids, limits)
    clock.start()
    why = engine.generate(ids, limits, clock)
    scores = engine.scores()
    engine.keep_scores(keep=False)
    trace = clock.trace(prompt_tokens=len(ids), requested_tokens=limits.max_new_tokens, stopped_by=why)
    return trace.token_ids, arrays(scores), why


def arrays(scores):
    shape = (scores.sequences, scores.positions)
    wide = (*shape, scores.width)
    return {
        "tokens": np.frombuffer(scores.tokens, "<i4").reshape(shape),
        "chosen": np.frombuffer(scores.chosen, "<f4").reshape(shape),
        "top_ids": np.frombuffer(scores.top_ids, "<i4").reshape(wide),
        "top": np.frombuffer(scores.top, "<f4").reshape(wide),
        "rest": np.frombuffer(scores.rest, "<f4").reshape(shape),
    }


@pytest.mark.parametrize("batch", [None, 3])
@pytest.mark.parametrize("follow", [None, (3, 3, 0, 1), (2, 2)], ids=["free", "forced", "forced short"])
def test_worked_values(batch, follow):
    given = Limits(max_new_tokens=4, ignore_eos=True, batch=batch)
    ids, scores, why = generated(engine_of(chain(CHAIN)), [2, 0], given, follow=follow)
    expected = follow or (1, 2, 0, 1)
    assert ids == expected
    assert why is StopReason.LENGTH
    before = [0, *expected[:-1]]
    assert scores["tokens"].tolist() == [list(expected)] * (batch or 1)
    for row in range(batch or 1):
        for n, (last, token) in enumerate(zip(before, expected, strict=True)):
            own = sorted(enumerate(CHAIN[last]), key=lambda one: (-one[1], one[0]))
            assert scores["chosen"][row, n] == pytest.approx(math.log(CHAIN[last][token]), abs=1e-6)
            assert scores["top"][row, n] == pytest.approx([math.log(p) for _, p in own], abs=1e-6)
            assert [CHAIN[last][i] for i in scores["top_ids"][row, n]] == [p for _, p in own]
    assert np.isneginf(scores["rest"]).all()


@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize("forced", [False, True])
def test_worked_values_of_a_vocabulary_above_the_top(batch, forced):
    rows = dirichlet(200)
    follow = [int(n) for n in np.random.default_rng(1).integers(0, 200, 6)] if forced else None
    given = Limits(max_new_tokens=6, ignore_eos=True, batch=batch)
    ids, scores, _ = generated(engine_of(chain(rows)), [7], given, follow=follow)
    before = [7, *ids[:-1]]
    exact = np.log(rows[before])
    top = -np.sort(-exact, axis=1)
    for row in range(batch or 1):
        assert scores["chosen"][row] == pytest.approx(exact[range(6), list(ids)], abs=1e-6)
        assert scores["top"][row] == pytest.approx(top[:, :64], abs=1e-6)
        assert scores["rest"][row] == pytest.approx(np.log(np.exp(top[:, 64:]).sum(1)), abs=1e-6)
        assert exact[np.arange(6)[:, None], scores["top_ids"][row]] == pytest.approx(top[:, :64], abs=1e-6)


def independent(model, prompt, ids):
    """Return the log-probabilities at each generated position, by one forward pass over all of the text; float64."""
    with torch.inference_mode():
        text = torch.tensor([[*prompt, *ids[:-1]]])
        logits = model(input_ids=text, attention_mask=torch.ones_like(text), use_cache=False).logits
    return torch.log_softmax(logits[0, len(prompt) - 1 :].double(), dim=-1).numpy()


def assert_as_a_forward_pass(model, engine, prompt, *, new=12, within=2e-4):
    """Hold what an engine keeps against an independent forward pass, free and forced."""
    free, scores, _ = generated(engine, prompt, Limits(max_new_tokens=new, ignore_eos=True))
    size = independent(model, prompt, free).shape[1]
    other = [(7 * n + 11) % size for n in range(new)]
    for follow in (None, other):
        ids, scores, _ = generated(engine, prompt, Limits(max_new_tokens=new, ignore_eos=True), follow=follow)
        assert list(ids) == list(follow or free)
        exact = independent(model, prompt, ids)
        assert scores["chosen"][0] == pytest.approx(exact[range(new), list(ids)], abs=within)
        width = scores["top"].shape[-1]
        top = -np.sort(-exact, axis=1)
        assert scores["top"][0] == pytest.approx(top[:, :width], abs=within)
        assert np.take_along_axis(exact, scores["top_ids"][0].astype(np.int64), 1) == pytest.approx(
            top[:, :width], abs=within
        )
        rest = np.exp(top[:, width:]).sum(1)
        assert np.exp(scores["rest"][0]) == pytest.approx(rest, abs=within)


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "phimoe", "llama"])
def test_as_a_forward_pass_over_the_text(kind):
    model = build(kind)
    assert_as_a_forward_pass(model, engine_of(model), [5, 6, 7, 8])


@pytest.mark.parametrize("kind", ["deepseek_v3", "gpt_oss", "olmoe", "granitemoehybrid"])
def test_as_a_forward_pass_of_other_architectures(kind):
    model = tiny_moe.build(kind)
    assert_as_a_forward_pass(model, engine_of(model), [5, 6, 7, 8])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2", "smollm2-moe"])
def test_as_a_forward_pass_of_real_weights(name):
    from pytest_infer.engines.transformers.engine import TransformersEngine

    engine = TransformersEngine(EngineOptions(model=name, dtype="float32"))
    with skip_without_package():
        engine.load()
    prompt = engine._tokenizer("The capital of France is")["input_ids"]
    assert_as_a_forward_pass(engine.running.model, engine, prompt, new=16, within=1e-3)
    engine.close()


def shaped(model):
    """Let a model's own configuration change what is chosen."""
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.suppress_tokens = [2]
    return model


@pytest.mark.parametrize("options", [{}, {"sampling": Sampling(temperature=3.0, top_p=0.5, seed=1)}])
def test_scores_are_of_the_raw_logits(options):
    engine = engine_of(shaped(chain(CHAIN)), **options)
    ids, scores, _ = generated(engine, [0], Limits(max_new_tokens=5, ignore_eos=True))
    assert 2 not in ids
    assert ids != (1, 2, 0, 1, 2)
    before = [0, *ids[:-1]]
    assert scores["chosen"][0] == pytest.approx(
        [math.log(CHAIN[a][b]) for a, b in zip(before, ids, strict=True)], abs=1e-6
    )


@pytest.mark.parametrize("options", [{}, {"sampling": Sampling(temperature=3.0, top_p=0.5, seed=1)}])
def test_tokens_are_followed_past_every_end(options):
    engine = engine_of(shaped(build("llama")), **options)  # its end of sequence is 0
    prompt, limits = [5, 6, 7], Limits(max_new_tokens=8, stop=("e",))
    free = generated(engine, prompt, limits)[0]
    given = [9, 0, 2, 0, 9, 9, 100]
    ids, scores, why = generated(engine, prompt, limits, follow=given)
    assert (list(ids), why) == (given, StopReason.LENGTH)
    assert scores["tokens"][0].tolist() == given
    assert generated(engine, prompt, limits, follow=[9, 0])[2] is StopReason.EOS
    assert generated(engine, prompt, limits)[0] == free


def test_sampled_sequences_of_a_batch_have_their_own_scores():
    engine = engine_of(chain(CHAIN), sampling=Sampling(seed=4))
    _, scores, _ = generated(engine, [0], Limits(max_new_tokens=30, ignore_eos=True, batch=3))
    tokens = scores["tokens"]
    assert len({tuple(row) for row in tokens.tolist()}) == 3
    for row, chosen in zip(tokens.tolist(), scores["chosen"], strict=True):
        worked = [math.log(CHAIN[a][b]) for a, b in zip([0, *row[:-1]], row, strict=True)]
        assert chosen == pytest.approx(worked, abs=1e-6)


def test_a_stop_string_ends_the_scores_with_the_text():
    engine = engine_of(build("mixtral"))
    prompt, limits = [5, 6, 7], Limits(max_new_tokens=20, ignore_eos=True)
    free, _, _ = generated(engine, prompt, limits)
    text = engine.decode(free[:9])
    ids, scores, why = generated(engine, prompt, Limits(max_new_tokens=20, ignore_eos=True, stop=(text[-1],)))
    assert why is StopReason.STOP_STRING
    assert len(ids) < 20
    assert scores["tokens"][0].tolist() == list(ids)
    assert scores["chosen"][0] == pytest.approx(
        independent(engine.running.model, prompt, ids)[range(len(ids)), ids], abs=2e-4
    )


def test_a_token_that_generate_takes_back_has_no_scores(monkeypatch):
    class Event:
        def __init__(self, **_):
            pass

        def record(self):
            pass

        synchronize = record

    engine, prompt = engine_of(build("llama")), [5, 6, 7]
    free, _, _ = generated(engine, prompt, Limits(max_new_tokens=12, ignore_eos=True))
    engine.running.config.eos_token_id = free[4]
    # As on MPS, where it sees an end one step late.
    utils = pytest.importorskip("transformers.generation.utils")
    if not hasattr(utils, "DeferredStopCheck"):
        pytest.skip("this transformers sees every end at once")
    monkeypatch.setattr(utils.DeferredStopCheck, "is_supported", staticmethod(lambda *_, **__: True))
    monkeypatch.setattr(utils.torch, "Event", Event)
    ids, scores, why = generated(engine, prompt, Limits(max_new_tokens=12))
    assert (ids, why) == (free[: free.index(free[4]) + 1], StopReason.EOS)
    assert scores["tokens"].tolist() == [list(ids)]


@pytest.mark.parametrize(
    ("spoil", "bad"), [(float("nan"), True), (float("inf"), True), (-float("inf"), False)], ids=["nan", "inf", "masked"]
)
def test_what_is_not_finite(spoil, bad):
    recorder = scoring.ScoreRecorder(positions=3, vocabulary=5000)
    logits = torch.randn(1, 5000)
    recorder.see(logits, [4])
    recorder.see(logits.index_fill(1, torch.tensor([17]), spoil), [4])
    found = arrays(recorder.scores())
    assert found["chosen"].shape == (1, 2)
    for what in ("chosen", "rest", "top"):
        assert np.isfinite(found[what][0, 0]).all()
        assert np.isnan(found[what][0, 1]).all() == bad
    assert ((found["top_ids"] >= 0) & (found["top_ids"] < 5000)).all()


def test_of_a_large_batch_the_first_sequences_are_kept(monkeypatch):
    monkeypatch.setattr(scoring._found(), "MOST_POSITIONS", 10)
    monkeypatch.setattr(scoring._found(), "_AT_ONCE", 256)  # rows of the first two in two parts
    recorder = scoring.ScoreRecorder(positions=4, vocabulary=200, sequences=7)
    logits = torch.randn(7, 200)
    recorder.see(logits, torch.arange(7))
    found = arrays(recorder.scores())
    exact = torch.log_softmax(logits.double(), -1).numpy()
    assert found["tokens"].tolist() == [[0], [1]]
    assert found["chosen"][:, 0] == pytest.approx([exact[0, 0], exact[1, 1]], abs=2e-6)


def test_whole_distributions_are_written_for_the_first_sequence(tmp_path):
    file = tmp_path / "full"
    recorder = scoring.ScoreRecorder(positions=4, vocabulary=3000, sequences=2, full=file)
    logits = torch.randn(3, 2, 3000)
    for step in logits:
        recorder.see(step, [1, 2])
    recorder.scores()
    found = np.fromfile(file, np.float32).reshape(3, 3000)
    assert found == pytest.approx(torch.log_softmax(logits[:, 0].double(), -1).numpy(), abs=3e-6)


def test_a_full_disk_or_too_much_leaves_no_file(tmp_path, monkeypatch):
    recorder = scoring.ScoreRecorder(positions=4, vocabulary=3000, full=tmp_path / "no folder" / "full")
    recorder.see(torch.randn(1, 3000), [1])
    assert recorder.scores().positions == 1
    recorder = scoring.ScoreRecorder(positions=4, vocabulary=3000, full=tmp_path / "full")

    class Disk:
        def write(self, _content):
            raise OSError(28, "No space left on device")

        def close(self):
            pass

    recorder._file.close()
    recorder._file = Disk()
    recorder.see(torch.randn(1, 3000), [1])
    assert recorder.scores().positions == 1
    monkeypatch.setattr(scoring._found(), "MOST_FULL_BYTES", 4 * 3000 * 4 - 1)
    scoring.ScoreRecorder(positions=4, vocabulary=3000, full=tmp_path / "large")
    assert not (tmp_path / "large").exists()
    assert not (tmp_path / "full").exists()


@pytest.fixture
def system():
    counters = SystemCounters()
    yield counters
    counters.close()


def test_timed_rounds_run_nothing_of_it(system, monkeypatch):
    """Not a line of the module runs in a timed round, and generate() is given what it was ever given."""
    engine = engine_of(build("mixtral"))
    seen = []
    own = engine.running.model.generate

    def generate(ids, **given):
        seen.append(set(given))
        return own(ids, **given)

    monkeypatch.setattr(engine.running.model, "generate", generate)
    limits = Limits(max_new_tokens=4, ignore_eos=True)
    first = timed_round(engine, asked([5, 6, 7]), limits, system)
    profile = Runner(engine=engine, asking=asked([5, 6, 7]), limits=limits, system=system, usable_cores=2.0).profile(
        first.trace, experts=False
    )
    assert profile.scores.positions == 4
    assert profile.tokens_equal

    def refuse(*_args, **_given):
        raise AssertionError("scores in a timed round")

    for name in ("ScoreRecorder.__init__", "ScoreRecorder.see", "Look.__call__", "Follow.__call__"):
        kind, _, method = name.partition(".")
        monkeypatch.setattr(getattr(scoring, kind), method, refuse)
    monkeypatch.setattr("pytest_infer.engines.transformers.running.looking_first", refuse)
    assert timed_round(engine, asked([5, 6, 7]), limits, system).trace.token_ids == first.trace.token_ids
    assert seen == [{"attention_mask", "generation_config", "streamer"}] * 3
    assert "_get_logits_processor" not in vars(engine.running.model)


def growths(*, keep):
    """Return how much memory grew in each of three profile rounds of a model whose logits are 8 MB."""
    config = transformers.LlamaConfig(
        vocab_size=2_000_000, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    engine = engine_of(transformers.LlamaForCausalLM(config).eval())
    if not keep:
        engine.keep_scores = lambda **_: None
    limits, counters, found = Limits(max_new_tokens=6, ignore_eos=True), SystemCounters(), []
    try:
        expected = timed_round(engine, asked([5, 6, 7]), limits, counters).trace
        for _ in range(3):
            runner = Runner(engine=engine, asking=asked([5, 6, 7]), limits=limits, system=counters, usable_cores=2.0)
            profile = runner.profile(expected, experts=False)
            assert (profile.scores is not None) == keep
            found.append(profile.memory_growth_bytes.value)
    finally:
        counters.close()
    return found


def test_the_memory_of_scores_is_in_no_figure(monkeypatch):
    """A single copy of such logits would be 8 MB.

    In processes of their own, whose allocator gives back each of them at once: elsewhere it has free memory of what ran
    before, which either round may find.
    """
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(2**20))
    found = {}
    for keep in (False, True):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
            found[keep] = min(fresh.submit(growths, keep=keep).result(timeout=300))
    assert found[True] <= found[False] + 6 * 2**20


def test_what_fails_while_it_looks_marks_the_record_alone(system, monkeypatch):
    engine = engine_of(build("mixtral"))
    limits = Limits(max_new_tokens=4, ignore_eos=True)
    expected = timed_round(engine, asked([5, 6, 7]), limits, system).trace

    def fail(*_args):
        raise RuntimeError("no kernel")

    monkeypatch.setattr(scoring.ScoreRecorder, "see", fail)
    profile = Runner(engine=engine, asking=asked([5, 6, 7]), limits=limits, system=system, usable_cores=2.0).profile(
        expected, experts=False
    )
    assert profile.tokens_equal
    assert (profile.scores, profile.scores_absent) == (None, "RuntimeError: no kernel")


def test_an_engine_that_offers_none_says_so(system):
    from pytest_infer.engines.base import Engine

    class Plain(Engine):
        def generate(self, prompt_ids, limits, clock):
            clock.tick([1])

    expected = timed_round(Plain(), asked([1]), Limits(max_new_tokens=1), system).trace
    profile = Runner(
        engine=Plain(), asking=asked([1]), limits=Limits(max_new_tokens=1), system=system, usable_cores=2.0
    ).profile(expected, experts=False)
    assert (profile.scores, profile.scores_absent) == (None, "the engine offers no scores")
