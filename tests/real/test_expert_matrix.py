"""Every mixture-of-experts architecture that transformers ships: what is recorded is what its experts did.

The truth knows nothing of routers or of the recorder: other weights are put into ONE expert, the block around it is run
again on the same input, and the rows whose output changes are those that selected the expert.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiny_moe
from lazily import Late, torch, transformers

from pytest_infer.measure.experts import types as expert_types

expert_sites = Late("pytest_infer.measure.experts.sites")
ExpertRecorder = Late("pytest_infer.measure.experts.recorder:ExpertRecorder")

pytestmark = pytest.mark.real

PROMPT, NEW = [5, 17, 3, 88, 41, 17, 60, 9, 2, 33], 6
SHORT = PROMPT[3:8]
NOT_BATCH_INVARIANT = {"doge": "its prefill mixes the routing of neighbouring tokens"}
"""Types whose routing of a token depends on what else is in the forward, so that ways of running differ."""


def generate(model, prompts=(PROMPT,), **options):
    """Return the new ids of each row and the recorded usage; shorter prompts are padded on the left."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    recorder = ExpertRecorder(model)
    with recorder.recording(prompt_tokens=width):
        output = model.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, **options)
    assert output.shape == (len(prompts), width + NEW)
    usage = recorder.usage(prompt_tokens=int(mask.sum()), generated_tokens=NEW * len(prompts), sequences=len(prompts))
    return output[:, width:].tolist(), usage


@cache
def baseline(kind):
    model = tiny_moe.build(kind)
    tokens, usage = generate(model)
    return model, tokens[0], usage


@pytest.fixture(params=tiny_moe.TYPES)
def kind(request):
    return request.param


def block_of(kind, name):
    """Return the name of the module whose output shows what a site's experts did, row by row."""
    if kind == "jetmoe":
        return name.removesuffix(".experts")
    if kind == "doge":
        return name
    return name.rpartition(".")[0]


def stacks_of(kind, module):
    """Return views of the experts' tensors, the experts along the first dimension."""
    if kind == "dbrx":
        return [weight.data.view(module.num_experts, -1, weight.shape[-1]) for weight in module.parameters()]
    if kind == "doge":
        return [module.down_embed.weight.data, module.up_embed.weight.data]
    if kind == "jetmoe":
        return [module.input_linear.weight.data, module.output_linear.weight.data]
    return [weight.data for name, weight in module.named_parameters() if "norm" not in name]


def truth(kind, model, sites, ids, prompt):
    """Return per site and expert in how many prompt rows and later rows its weights matter."""
    calls, hooks = {}, []
    for site in sites:
        name = block_of(kind, site.name)
        block = model.get_submodule(name)
        hooks.append(
            block.register_forward_pre_hook(
                lambda _block, args, kwargs, name=name: calls.setdefault(name, (args, kwargs)), with_kwargs=True
            )
        )
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), use_cache=False)
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        return [rows_of(kind, model, site, *calls[block_of(kind, site.name)], len(ids), prompt) for site in sites]


def rows_of(kind, model, site, args, kwargs, rows, prompt):
    block, module = model.get_submodule(block_of(kind, site.name)), model.get_submodule(site.name)
    generator = torch.Generator().manual_seed(3)

    def run():
        output = block(*args, **kwargs)
        output = output[0] if isinstance(output, tuple) else output
        return output.reshape(rows, -1).clone()

    before, found = run(), []
    for expert in range(site.experts):
        stacks = stacks_of(kind, module)
        kept = [stack[expert].clone() for stack in stacks]
        for stack in stacks:
            stack[expert] = torch.randn(stack[expert].shape, generator=generator)
        changed = (run() != before).any(dim=-1)
        for stack, old in zip(stacks, kept, strict=True):
            stack[expert] = old
        found.append((int(changed[:prompt].sum()), int(changed[prompt:].sum())))
    assert torch.equal(run(), before)
    return found


def test_counts_are_those_of_perturbed_experts(kind):
    model, tokens, usage = baseline(kind)
    assert usage.check == "passed"
    assert usage.note is None
    if kind in NOT_BATCH_INVARIANT:  # only a forward of its own can be compared with a forward
        recorder = ExpertRecorder(model)
        with recorder.recording(prompt_tokens=len(PROMPT)), torch.no_grad():
            model(input_ids=torch.tensor([PROMPT]), use_cache=False)
        usage, tokens = recorder.usage(prompt_tokens=len(PROMPT), generated_tokens=1), [0]
    found = truth(kind, model, usage.sites, PROMPT + tokens[:-1], len(PROMPT))
    for site, prefill, decode, rows in zip(usage.sites, usage.prefill, usage.decode, found, strict=True):
        counted = list(zip(prefill[: site.experts], decode[: site.experts], strict=True))
        assert counted == rows, site.name
    assert usage.sites


def test_sites_are_sized(kind):
    model, _, usage = baseline(kind)
    for site in usage.sites:
        stacks = stacks_of(kind, model.get_submodule(site.name))
        assert site.expert_bytes == sum(stack[0].numel() * stack.element_size() for stack in stacks)
        assert 0 < site.k <= site.slots
        assert site.experts <= site.slots


@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm"])
def test_experts_implementations_agree(kind, implementation):
    eager, tokens, usage = baseline(kind)
    if not type(eager)._can_set_experts_implementation():
        pytest.skip("its experts have one implementation")
    model = tiny_moe.build(kind, implementation)
    again, other = generate(model)
    assert again[0] == tokens
    assert (other.prefill, other.decode, other.check) == (usage.prefill, usage.decode, "passed")


def test_the_cache_changes_no_count(kind):
    model, tokens, usage = baseline(kind)
    if kind in NOT_BATCH_INVARIANT:
        pytest.skip(NOT_BATCH_INVARIANT[kind])
    again, other = generate(model, use_cache=False)
    assert again[0] == tokens
    assert (other.prefill, other.decode, other.check) == (usage.prefill, usage.decode, "passed")


def test_a_padded_batch_is_the_sum_of_its_rows(kind):
    model, tokens, usage = baseline(kind)
    if kind in NOT_BATCH_INVARIANT:
        pytest.skip(NOT_BATCH_INVARIANT[kind])
    (short,), alone = generate(model, [SHORT])
    both, batch = generate(model, [PROMPT, SHORT])
    assert both == [tokens, short]
    assert batch.check == "passed"
    for phase in ("prefill", "decode"):
        rows = zip(getattr(usage, phase), getattr(alone, phase), strict=True)
        assert getattr(batch, phase) == tuple(tuple(a + b for a, b in zip(*row, strict=True)) for row in rows)


def test_capture_changes_no_token_and_no_logit(kind):
    model, tokens, _ = baseline(kind)
    ids = torch.tensor([PROMPT])
    options = {"max_new_tokens": NEW, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    bare = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    recorder = ExpertRecorder(model)
    with recorder.recording(prompt_tokens=len(PROMPT), trace=True):
        watched = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    assert watched.sequences[0, len(PROMPT) :].tolist() == tokens
    assert torch.equal(torch.stack(bare.logits), torch.stack(watched.logits))
    usage = recorder.usage(prompt_tokens=len(PROMPT), generated_tokens=NEW)
    for site, trace, prefill, decode in zip(usage.sites, usage.trace, usage.prefill, usage.decode, strict=True):
        assert Counter(trace[: len(PROMPT) * site.k]) == +Counter(dict(enumerate(prefill)))
        assert Counter(trace[len(PROMPT) * site.k :]) == +Counter(dict(enumerate(decode)))


def directories():
    """Yield the folders of transformers/models that define experts, with the model types of their configs."""
    experts = re.compile(r"^class \w*(Experts|MoE|Moe|MOE|SparseMLP)\w*\((nn\.|torch)", re.MULTILINE)
    types = re.compile(r"^    model_type(?:: \w+)? = \"([^\"]+)\"", re.MULTILINE)
    for folder in sorted(Path(find_spec("transformers").submodule_search_locations[0], "models").iterdir()):
        code = "".join(path.read_text(encoding="utf-8") for path in folder.glob("modeling_*.py"))
        if experts.search(code):
            configs = "".join(path.read_text(encoding="utf-8") for path in folder.glob("configuration_*.py"))
            yield folder.name, set(types.findall(configs))


def test_every_architecture_that_is_installed_is_known():
    """A new one fails here with its name: build it in tiny_moe.TYPES, or say in expert_types.REFUSED why not."""
    folders = dict(directories())
    no_language_models = {"vitpose_backbone"}
    known = expert_types.CHECKED | set(expert_types.REFUSED)
    unknown = {folder: types for folder, types in folders.items() if not types & known}
    assert set(unknown) == no_language_models
    built = {*tiny_moe.TYPES, "switch_transformers"}
    unbuilt = [folder for folder, types in folders.items() if not types & (built | set(expert_types.REFUSED))]
    assert set(unbuilt) == no_language_models


def test_every_checked_type_is_built_here():
    """A type that is claimed to be checked is built itself, or is the text part of one that is."""
    parts = {f"{kind}_text" for kind in tiny_moe.TYPES} | {kind.removesuffix("_text") for kind in tiny_moe.TYPES}
    built = {*tiny_moe.TYPES, *parts, "switch_transformers", "step3p5", "inkling_mm_model", "qwen3_omni_moe_text"}
    assert built >= expert_types.CHECKED


@pytest.mark.parametrize("kind", ["diffusion_gemma", "nllb-moe", "openai_privacy_filter"])
def test_what_cannot_be_recorded_is_refused_with_its_name(kind):
    module = torch.nn.Module()
    module.config = transformers.PreTrainedConfig()
    module.config.model_type = kind
    with pytest.raises(expert_sites.ExpertCaptureError, match=f"^{kind} "):
        expert_sites.find(module)
