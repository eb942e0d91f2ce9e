"""What counts, in which phase, and what is refused: on a toy model whose selections follow from its token ids."""

from __future__ import annotations

from collections import Counter

import pytest
from lazily import Late, torch

from pytest_infer.errors import ExpertCaptureError

pytestmark = pytest.mark.real

ExpertRecorder = Late("pytest_infer.measure.experts.recorder:ExpertRecorder")
nn = Late("torch.nn")
toys = Late("toy_recorder")


class Cache:
    def __init__(self, length=0):
        self.length = length

    def get_seq_length(self):
        return self.length


def counts(ids, layer):
    found = Counter(toys.selected(torch.tensor(ids, dtype=torch.int64), layer).flatten().tolist())
    return tuple(found[expert] for expert in range(toys.EXPERTS))


def rows(ids):
    return tuple(counts(ids, layer) for layer in range(toys.LAYERS))


def record(model, forwards, *, prompt, generated=None, sequences=1, counted=None):
    """Record forwards given as (ids, keyword arguments) and return the usage."""
    recorder = ExpertRecorder(model)
    with recorder.recording(prompt_tokens=prompt):
        for ids, more in forwards:
            model(torch.tensor(ids), **more)
    tokens = sum(len(row) for ids, _ in forwards for row in ids)
    counted = prompt if counted is None else counted
    generated = tokens - prompt + 1 if generated is None else generated
    return recorder.usage(prompt_tokens=counted, generated_tokens=generated, sequences=sequences)


def cached(*chunks, name="past_key_values"):
    cache = Cache()
    return [([list(chunk)], {name: cache}) for chunk in chunks]


PROMPT, ANSWER = [7, 3, 3, 9, 12, 0], [4, 4, 1, 30]


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_prefill_and_decode_are_apart(name):
    # transformers 5.24 gave the argument another name.
    usage = record(toys.Model(), cached(PROMPT, *([token] for token in ANSWER), name=name), prompt=6)
    assert usage.prefill == rows(PROMPT)
    assert usage.decode == rows(ANSWER)
    assert (usage.prefill_tokens, usage.decode_tokens, usage.check) == (6, 4, "passed")
    assert [(site.layer, site.k, site.experts) for site in usage.sites] == [(0, 2, 5), (1, 2, 5), (2, 2, 5)]


@pytest.mark.parametrize("chunks", [(6,), (4, 2), (1, 1, 1, 1, 1, 1), (5, 1), (3, 3)])
def test_chunked_prefill_is_prefill(chunks):
    parts, start = [], 0
    for size in chunks:
        parts.append(PROMPT[start : start + size])
        start += size
    usage = record(toys.Model(), cached(*parts, *([token] for token in ANSWER)), prompt=6)
    assert (usage.prefill, usage.decode, usage.check) == (rows(PROMPT), rows(ANSWER), "passed")


def test_forward_across_the_end_of_the_prompt_is_cut_there():
    usage = record(toys.Model(), cached(PROMPT[:4], PROMPT[4:] + ANSWER[:2], ANSWER[2:]), prompt=6)
    assert (usage.prefill, usage.decode, usage.check) == (rows(PROMPT), rows(ANSWER), "passed")


def test_one_token_prompt_is_prefill():
    usage = record(toys.Model(), cached([7], *([token] for token in ANSWER)), prompt=1)
    assert (usage.prefill, usage.decode, usage.check) == (rows([7]), rows(ANSWER), "passed")


def test_one_generated_token_has_no_decode():
    usage = record(toys.Model(), cached(PROMPT), prompt=6)
    assert (usage.prefill, usage.decode, usage.check) == (rows(PROMPT), rows([]), "passed")


@pytest.mark.parametrize("length", [63, 64, 65, 200])
def test_decode_forwards_are_counted_in_batches_without_loss(length):
    answer = [(3 * i * i + 1) % 50 for i in range(length)]
    usage = record(toys.Model(), cached(PROMPT, *([token] for token in answer)), prompt=6)
    assert (usage.prefill, usage.decode, usage.check) == (rows(PROMPT), rows(answer), "passed")


def test_without_a_cache_only_new_positions_count():
    text = PROMPT + ANSWER
    steps = [([text[:end]], {}) for end in range(6, 11)]
    usage = record(toys.Model(), steps, prompt=6, generated=5)
    assert (usage.prefill, usage.decode, usage.check) == (rows(PROMPT), rows(ANSWER), "passed")


def test_padding_never_counts():
    cache = Cache()
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    more = {"attention_mask": mask, "past_key_values": cache}
    longer = {"attention_mask": nn.functional.pad(mask, (0, 1), value=1), "past_key_values": cache}
    batch = [([[2, 2, 7, 3, 9], [8, 7, 6, 5, 4]], more), ([[1], [3]], longer)]
    usage = record(toys.Model(), batch, prompt=5, counted=8, generated=4, sequences=2)
    assert usage.prefill == rows([7, 3, 9, 8, 7, 6, 5, 4])
    assert (usage.decode, usage.check) == (rows([1, 3]), "passed")


def test_padding_that_no_mask_tells_fails_the_check():
    batch = [([[2, 2, 7, 3, 9], [8, 7, 6, 5, 4]], {})]
    usage = record(toys.Model(), batch, prompt=5, counted=8, generated=2, sequences=2)
    expected = "layers.0.experts: 20 prefill selections, expected 16 (8 tokens x 2)"
    assert usage.check.startswith(expected)


def test_fewer_tokens_than_the_harness_counted_fail_the_check():
    usage = record(toys.Model(), cached(PROMPT, [4]), prompt=6, generated=5)
    assert usage.check == "layers.0.experts: 2 decode selections, expected 8 (4 tokens x 2)"


def test_ids_given_by_name_and_in_int32_are_the_same():
    model = toys.Model()
    for layer in model.layers:
        layer.by_name, layer.mangle = True, lambda index: index.int()
    usage = record(model, cached(PROMPT, *([token] for token in ANSWER)), prompt=6)
    assert (usage.prefill, usage.decode, usage.check) == (rows(PROMPT), rows(ANSWER), "passed")


def test_sites_of_different_k_are_each_held_to_their_own():
    model = toys.Model()
    model.layers[1].mangle = lambda index: index[:, :1]
    usage = record(model, cached(PROMPT, *([token] for token in ANSWER)), prompt=6)
    assert [site.k for site in usage.sites] == [2, 1, 2]
    assert usage.check == "passed"
    assert [sum(row) for row in usage.decode] == [8, 4, 8]


def test_positional_arguments_of_the_model_are_understood():
    model = toys.Model()
    recorder = ExpertRecorder(model)
    with recorder.recording(prompt_tokens=3):
        model(torch.tensor([[5, 7, 3]]), torch.tensor([[0, 1, 1]]))
    assert recorder.usage(prompt_tokens=2, generated_tokens=1).prefill == rows([7, 3])


def test_inference_mode_counts_after_it_ended():
    model = toys.Model()
    recorder = ExpertRecorder(model)
    with recorder.recording(prompt_tokens=6), torch.inference_mode():
        for ids, more in cached(PROMPT, *([token] for token in ANSWER)):
            model(torch.tensor(ids), **more)
    usage = recorder.usage(prompt_tokens=6, generated_tokens=5)
    assert (usage.prefill, usage.decode, usage.check) == (rows(PROMPT), rows(ANSWER), "passed")


@pytest.mark.parametrize("shift", [-6, 1])
def test_ids_beyond_the_experts_are_refused_and_count_for_no_neighbour(shift):
    model = toys.Model()
    model.layers[1].mangle = lambda index: index + shift
    with pytest.raises(ExpertCaptureError, match=r"layers\.1\.experts was given \d+ expert ids outside 0 to 4"):
        record(model, cached(PROMPT, [4]), prompt=6)


REFUSED = {
    "ran twice within one forward": lambda layer: setattr(layer, "times", 2),
    "did not run in a forward": lambda layer: setattr(layer, "times", 0),
    "was given 5 of 6 rows": lambda layer: setattr(layer, "mangle", lambda index: index[:-1]),
    "not given expert ids of shape": lambda layer: setattr(layer, "mangle", lambda index: index.float()),
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_cannot_be_counted_is_refused_by_name(line):
    model = toys.Model()
    REFUSED[line](model.layers[1])
    with pytest.raises(ExpertCaptureError, match=rf"layers\.1\.experts .*{line}"):
        record(model, cached(PROMPT), prompt=6)


def test_rejected_drafts_are_refused():
    cache = Cache()
    forwards = [([PROMPT], {"attention_mask": torch.ones(1, 6), "past_key_values": cache})]
    forwards += [([[1, 2, 3]], {"attention_mask": torch.ones(1, end), "past_key_values": cache}) for end in (9, 10)]
    with pytest.raises(ExpertCaptureError, match=r"went back to position 7 after 9 .* assisted decoding"):
        record(toys.Model(), forwards, prompt=6)


def test_second_generation_in_one_recording_is_refused():
    with pytest.raises(ExpertCaptureError, match="record one generation"):
        record(toys.Model(), [([PROMPT], {}), ([PROMPT], {})], prompt=6)


def test_reused_prefix_is_refused():
    with pytest.raises(ExpertCaptureError, match="began at position 4, but only 0 were recorded"):
        record(toys.Model(), [([PROMPT], {"past_key_values": Cache(4)})], prompt=6)


def test_experts_outside_the_model_forward_are_refused():
    model = toys.Model()
    recorder = ExpertRecorder(model)
    with recorder.recording(prompt_tokens=2):
        model.layers[0](torch.tensor([[1, 2]]))
    with pytest.raises(ExpertCaptureError, match="outside the forward of the model"):
        recorder.usage(prompt_tokens=2, generated_tokens=1)


def test_model_that_was_never_called_is_refused():
    recorder = ExpertRecorder(toys.Model())
    with recorder.recording(prompt_tokens=2):
        pass
    with pytest.raises(ExpertCaptureError, match="no forward of the model was seen"):
        recorder.usage(prompt_tokens=2, generated_tokens=1)


def test_model_compiled_during_the_recording_is_refused():
    model = toys.Model()
    recorder = ExpertRecorder(model)
    with recorder.recording(prompt_tokens=2):
        model(torch.tensor([[1, 2]]))
        model._compiled_call = object()
    with pytest.raises(ExpertCaptureError, match="the model is compiled"):
        recorder.usage(prompt_tokens=2, generated_tokens=1)


def test_dense_model_has_no_usage():
    recorder = ExpertRecorder(nn.Linear(2, 2))
    with recorder.recording(prompt_tokens=2):
        pass
    assert recorder.sites == ()
    with pytest.raises(ExpertCaptureError, match="dense"):
        recorder.usage(prompt_tokens=2, generated_tokens=1)


@pytest.mark.parametrize("chunks", [(6,), (4, 2), (1, 5)])
def test_trace_is_the_selections_in_order_of_position(chunks):
    parts, start = [], 0
    for size in chunks:
        parts.append(PROMPT[start : start + size])
        start += size
    answer = [(5 * i * i + 2) % 40 for i in range(70)]
    model = toys.Model()
    recorder = ExpertRecorder(model)
    with recorder.recording(prompt_tokens=6, trace=True):
        for ids, more in cached(*parts, *([token] for token in answer)):
            model(torch.tensor(ids), **more)
    usage = recorder.usage(prompt_tokens=6, generated_tokens=71)
    for layer, trace in enumerate(usage.trace):
        assert list(trace) == toys.selected(torch.tensor(PROMPT + answer), layer).flatten().tolist()


def test_trace_without_a_cache_has_each_position_once():
    text, model = PROMPT + ANSWER, toys.Model()
    recorder = ExpertRecorder(model)
    with recorder.recording(prompt_tokens=6, trace=True):
        for end in range(6, 11):
            model(torch.tensor([text[:end]]))
    usage = recorder.usage(prompt_tokens=6, generated_tokens=5)
    assert list(usage.trace[2]) == toys.selected(torch.tensor(text), 2).flatten().tolist()


def test_trace_is_dropped_when_the_check_fails():
    model = toys.Model()
    recorder = ExpertRecorder(model)
    with recorder.recording(prompt_tokens=6, trace=True):
        model(torch.tensor([PROMPT]))
    usage = recorder.usage(prompt_tokens=6, generated_tokens=3)
    assert usage.trace is None
    assert usage.check != "passed"


def test_no_trace_unless_asked_for():
    assert record(toys.Model(), cached(PROMPT), prompt=6).trace is None


def test_gate_weights_are_summed_in_both_phases_without_padding():
    cache, model = Cache(), toys.Model()
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    more = {"attention_mask": mask, "past_key_values": cache}
    longer = {"attention_mask": nn.functional.pad(mask, (0, 1), value=1), "past_key_values": cache}
    for layer in model.layers:  # the first expert of a token weighs 1/4, the second 3/4
        layer.gates = torch.tensor([0.25, 0.75])
    batch = [([[2, 2, 7, 3, 9], [8, 7, 6, 5, 4]], more), ([[1], [3]], longer)]
    usage = record(model, batch, prompt=5, counted=8, generated=4, sequences=2)
    for found, ids in ((usage.prefill_weights, [7, 3, 9, 8, 7, 6, 5, 4]), (usage.decode_weights, [1, 3])):
        for layer, row in enumerate(found):
            expected = [0.0] * toys.EXPERTS
            for first, second in toys.selected(torch.tensor(ids), layer).tolist():
                expected[first] += 0.25
                expected[second] += 0.75
            assert list(row) == expected


def test_experts_of_a_tower_that_run_are_refused():
    model = toys.Model()
    model.visual = nn.ModuleList([toys.Block(0)])
    recorder = ExpertRecorder(model)
    with recorder.recording(prompt_tokens=2):
        model(torch.tensor([[1, 2]]))
    assert recorder.usage(prompt_tokens=2, generated_tokens=1).prefill == rows([1, 2])
    with recorder.recording(prompt_tokens=2):
        model.visual[0](torch.tensor([[1, 2]]))
        model(torch.tensor([[1, 2]]))
    with pytest.raises(ExpertCaptureError, match=r"visual\.0\.experts ran: images and sound cannot be recorded"):
        recorder.usage(prompt_tokens=2, generated_tokens=1)


def test_each_recording_starts_from_nothing():
    model = toys.Model()
    recorder = ExpertRecorder(model)
    for _ in range(2):
        with recorder.recording(prompt_tokens=2):
            model(torch.tensor([[1, 2]]))
    assert recorder.usage(prompt_tokens=2, generated_tokens=1).prefill == rows([1, 2])


def test_error_in_the_model_leaves_no_hooks_and_no_usage():
    model = toys.Model()
    recorder = ExpertRecorder(model)
    model.fail = True
    with pytest.raises(ValueError, match="out of luck"), recorder.recording(prompt_tokens=2):
        model(torch.tensor([[1, 2]]))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with pytest.raises(ExpertCaptureError, match="generate inside recording"):
        recorder.usage(prompt_tokens=2, generated_tokens=1)
