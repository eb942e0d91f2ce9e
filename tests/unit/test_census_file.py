"""A census carried over: from a run to a file and into commands again, and from what vLLM recorded."""

import base64
import codecs
import io
import json

import gguf
import numpy as np
import pytest
from typer.testing import CliRunner

from pytest_infer.cli.main import app
from pytest_infer.measure.experts import dumps

MIB = 2**20
CONFIG = {
    "model_type": "qwen3_moe", "num_hidden_layers": 3, "hidden_size": 64, "vocab_size": 512, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 96, "moe_intermediate_size": 32, "num_experts": 8,
    "num_experts_per_tok": 2, "mlp_only_layers": [0], "tie_word_embeddings": False, "dtype": "bfloat16",
}  # fmt: skip
EXPERT = 3 * 64 * 32 * 2
"""Bytes of one of its experts in bfloat16: gate, up and down."""


@pytest.fixture
def infer(storage, monkeypatch, tmp_path):
    """Return a function that runs a command beside the config of a model whose layers 1 and 2 have experts."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    tmp_path.joinpath("model").mkdir()
    tmp_path.joinpath("model", "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")

    def run(*arguments, code=0):
        result = CliRunner().invoke(app, [*arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert result.exit_code == code, result.output
        return result

    return run


@pytest.fixture
def stored(storage, make_block):
    """A run of two prompts of a model whose experts lie in layers 1 and 2."""
    rows = [([7, 1, 1, 1], [1, 1, 1, 7]), ([5, 3, 1, 1], [2, 1, 1, 6])]
    blocks = []
    for number, decode in enumerate(rows):
        sites = [
            {"name": f"model.layers.{n}.mlp.experts", "layer": n, "experts": 4, "slots": 4, "k": 1, "expert_bytes": MIB}
            for n in (1, 2)
        ]
        usage = {
            "check": "passed",
            "tokens": {"prefill": 2, "decode": 10},
            "sites": sites,
            "counts": {"prefill": [[2, 0, 0, 0]] * 2, "decode": decode},
        }
        prompt = {"content_sha256": f"{number:064}", "tags": ["code" if number else "prose"]}
        model = {"name": "toy", "parameter_bytes": 10 * MIB}
        blocks.append(make_block(f"p{number}", experts=usage, prompt=prompt, model=model, kv_cache_bytes=MIB // 2))
    storage.add(blocks)
    return f"--storage={storage.folder}"


@pytest.mark.parametrize("command", [("placement", "--gpu-memory", "5MiB"), ("experts", "--by", "tag")])
def test_a_census_says_what_its_run_said(infer, stored, command):
    wrote = infer("experts", "export", "latest", "census.json", stored).stdout
    assert wrote.startswith("wrote census.json: 2 prompts, 4 + 20 tokens, 2 layers of 4 experts, ")
    name, *options = command
    of_run = infer(name, "latest", *options, "--format=json", stored).stdout
    of_file = infer(name, "census.json", *options, "--format=json").stdout
    without = [{k: v for k, v in json.loads(text).items() if k != "run"} for text in (of_run, of_file)]
    assert without[0] == without[1]
    # What the run names first, the census does as well.
    assert (
        infer(name, "census.json", *options).stdout.splitlines()[0]
        == (infer(name, "latest", *options, stored).stdout.splitlines()[0])
    )


def test_a_census_of_a_census_is_the_same(infer, stored, tmp_path):
    infer("experts", "export", "latest", "a.json", stored)
    infer("experts", "export", "a.json", "b.json")
    assert tmp_path.joinpath("a.json").read_text() == tmp_path.joinpath("b.json").read_text()
    infer("experts", "export", "a.json", "c.json", "-k", "p1")
    assert "1 prompt" in infer("placement", "c.json", "--dense-on=cpu").stdout


@pytest.mark.parametrize("layout", ["crlf", "bom", "tabs", "sorted"])
def test_a_census_is_known_however_it_is_laid_out(infer, stored, tmp_path, layout):
    infer("experts", "export", "latest", "a.json", stored)
    held = tmp_path.joinpath("a.json").read_bytes()
    assert b"\r" not in held
    others = {
        "crlf": held.replace(b"\n", b"\r\n"),
        "bom": codecs.BOM_UTF8 + held,
        "tabs": json.dumps(json.loads(held), indent="\t").encode(),
        "sorted": json.dumps(json.loads(held), sort_keys=True).encode(),
    }
    tmp_path.joinpath("b.json").write_bytes(others[layout])
    said = [infer("experts", name).stdout for name in ("a.json", "b.json")]
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"schema": 1, "sites": [], "prompts": []}', "a census of schema 1, and 2 is read here: export it again"),
        ('{"schema": 2, "sites": [], "prompts": []}', "no prompt in this census"),
        ('{"schema": 2, "sites": []', "no census: "),
        ('{"schema": 2, "sites": [], "prompts": 3}', "no census: "),
    ],
)
def test_a_file_that_is_no_census_is_one_line(infer, tmp_path, text, said):
    tmp_path.joinpath("census.json").write_text(text, encoding="utf-8")
    for command in ("experts", "placement"):
        (line,) = infer(command, "census.json", code=2).stderr.splitlines()
        assert line.startswith("pytest-infer: census.json: ")
        assert said in line


def test_counts_that_contradict_the_sites_are_named(infer, stored, tmp_path):
    infer("experts", "export", "latest", "census.json", stored)
    held = json.loads(tmp_path.joinpath("census.json").read_text())
    held["prompts"][0]["counts"]["decode"][0].append(3)
    tmp_path.joinpath("census.json").write_text(json.dumps(held))
    assert "has 4 slots, but counts of 4 and 5" in infer("experts", "census.json", code=2).stderr


# vLLM


def response(prompt, *choices, name=None, packed=False):
    """A response of `vllm serve --enable-return-routed-experts`, as docs/training/routed_experts_replay.md has it."""

    def given(ids):
        if not packed:
            return ids
        file = io.BytesIO()
        np.save(file, np.asarray(ids, dtype=np.int16))
        return base64.b64encode(file.getvalue()).decode()

    found = {
        "object": "text_completion",
        "model": "m",
        "choices": [{"index": n, "text": "…", "routed_experts": given(ids)} for n, ids in enumerate(choices)],
        "prompt_routed_experts": given(prompt),
        "usage": {"prompt_tokens": len(prompt)},
    }
    return found | ({"id": name} if name else {})


PROMPT = [[[0, 1], [2, 3]], [[-1, -1], [-1, -1]]]
"""Tokens, MoE layers, top-k; the second token's prefix was cached."""
CHOICE = [[[0, 7], [2, 3]], [[0, 6], [2, 5]]]


@pytest.mark.parametrize("packed", [False, True])
def test_responses_of_vllm_become_a_census(infer, tmp_path, packed):
    one, other = (response(PROMPT, CHOICE, name=name, packed=packed) for name in ("cmpl-1", "cmpl-2"))
    tmp_path.joinpath("a.json").write_text(json.dumps([one, other]))
    last = json.dumps(response([], CHOICE, CHOICE, packed=packed))
    tmp_path.joinpath("b.jsonl").write_text(f"\ufeff{last}\r\n\n")
    said = infer("experts", "import", "a.json", "b.jsonl", "--model=model").stdout
    assert said == "wrote census.json: 3 prompts, 2 + 8 tokens, 2 layers of 8 experts, model\n"
    held = json.loads(tmp_path.joinpath("census.json").read_text())
    assert [(s["layer"], s["name"], s["k"]) for s in held["sites"]] == [
        (1, "model.layers.1.mlp.experts", 2),
        (2, "model.layers.2.mlp.experts", 2),
    ]
    assert [p["name"] for p in held["prompts"]] == ["cmpl-1", "cmpl-2", "b-1"]
    assert held["prompts"][0]["counts"] == {
        "prefill": [[1, 1, 0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0, 0, 0]],
        "decode": [[2, 0, 0, 0, 0, 0, 1, 1], [0, 0, 2, 1, 0, 1, 0, 0]],
    }
    assert held["prompts"][2]["tokens"] == {"prefill": 0, "decode": 4}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (response(PROMPT, [[[0, 1]]]), "routed experts of shape (1, 1, 2), and the model has 2 layers"),
        (response(PROMPT, [[[0, 8], [2, 3]]]), "expert 8, and the model has 8: another --model?"),
        (response(PROMPT, [[[0, 1], [2, -3]]]), "expert -3, and the model has 8: another --model?"),
        (response(PROMPT, [[[0, 1], [2, 2]]]), "expert 2 twice for one token"),
        (response(PROMPT, [[[0.5, 1.0], [2, 3]]]), "routed experts that are no whole numbers"),
        (response(PROMPT, [[[10**30, 1], [2, 3]]]), "routed experts that are no whole numbers"),
        (response(PROMPT, [[[0, 1], [2]]]), "routed experts that are no array"),
        (response("AAAA"), "routed experts that are no array"),
        (response([], []), "no selection in it"),
        ({"choices": 3}, "neither SGLang's recording (.pt) nor vLLM's responses"),
        ([1], "neither SGLang's recording (.pt) nor vLLM's responses"),
    ],
)
def test_what_does_not_fit_is_one_line(infer, tmp_path, content, said):
    tmp_path.joinpath("a.json").write_text(json.dumps(content))
    (line,) = infer("experts", "import", "a.json", "--model=model", code=2).stderr.splitlines()
    assert said in line
    assert not tmp_path.joinpath("census.json").exists()


def test_recordings_of_one_name_stay_apart(infer, tmp_path):
    for folder, choice in (("a", CHOICE), ("b", CHOICE[:1])):
        tmp_path.joinpath(folder).mkdir()
        tmp_path.joinpath(folder, "r.jsonl").write_text(json.dumps(response(PROMPT, choice)))
    said = infer("experts", "import", "a/r.jsonl", "b/r.jsonl", "--model=model").stdout
    assert "2 prompts, 2 + 3 tokens" in said
    held = json.loads(tmp_path.joinpath("census.json").read_text())
    assert [one["name"] for one in held["prompts"]] == ["r-1", "r-1 (2)"]
    # As an earlier version wrote it, by name alone.
    for one in held["prompts"]:
        del one["content"]
        one["name"] = "r-1"
    tmp_path.joinpath("earlier.json").write_text(json.dumps(held))
    for census in ("census.json", "earlier.json"):
        shown = json.loads(infer("experts", census, "--format=json").stdout)
        assert shown["overlap"]["names"] == shown["prompts"] == ["r-1", "r-1 (2)"]
        assert shown["tokens"] == {"prefill": 2, "decode": 3}


def test_a_dense_model_takes_no_census(infer, tmp_path):
    tmp_path.joinpath("model", "config.json").write_text(json.dumps(CONFIG | {"model_type": "qwen3"}))
    tmp_path.joinpath("a.json").write_text(json.dumps(response(PROMPT, CHOICE)))
    assert "has no experts" in infer("experts", "import", "a.json", "--model=model", code=2).stderr


# SGLang: the file itself is read in tests/real/test_dumps.py


@pytest.mark.parametrize(
    "counts",
    [
        [[0] * 8, [6, 0, 0, 0, 0, 0, 0, 4], [0, 5, 5, 0, 0, 0, 0, 0]],
        [[6, 0, 0, 0, 0, 0, 0, 4], [0, 5, 5, 0, 0, 0, 0, 0]],
    ],
    ids=["all layers", "those with experts"],
)
def test_counts_of_sglang_are_generated_tokens(infer, tmp_path, monkeypatch, counts):
    monkeypatch.setattr(dumps, "read", lambda path: np.asarray(counts))
    infer("experts", "import", "a.pt", "--model=model")
    (prompt,) = json.loads(tmp_path.joinpath("census.json").read_text())["prompts"]
    assert prompt["tokens"] == {"prefill": 0, "decode": 5}
    assert prompt["counts"]["decode"] == counts[-2:]


def test_counts_of_another_model_are_refused(infer, monkeypatch):
    monkeypatch.setattr(dumps, "read", lambda path: np.zeros((3, 4), dtype=np.int64))
    said = infer("experts", "import", "a.pt", "--model=model", code=2).stderr
    assert "3 layers of 4 experts, and the model has 8 experts in 2 layers, the last of them 2" in said


# a model that is only a config


@pytest.mark.parametrize(("dtype", "size"), [(None, EXPERT), ("float32", 2 * EXPERT), ("int4", EXPERT * 18 // 64)])
def test_a_plan_for_a_config_alone(infer, tmp_path, dtype, size):
    tmp_path.joinpath("a.json").write_text(json.dumps([response(PROMPT, CHOICE, name=str(n)) for n in range(4)]))
    infer("experts", "import", "a.json", "--model=model")
    words = () if dtype is None else ("--dtype", dtype)
    found = infer("placement", "census.json", "--model=model", *words, "--gpu-memory=1GiB", "--format=json").stdout
    assert json.loads(found)["sizes"]["expert_bytes"] == [size, size]
    assert json.loads(found)["sizes"]["source"].startswith("config alone of model (")
    assert "name the model with --model" in infer("placement", "census.json", code=2).stderr
    assert "--dtype is of a model's files" in infer("placement", "census.json", "--dtype=int4", code=2).stderr


def test_a_plan_for_a_gguf_file(infer, tmp_path):
    """Experts in Q4_0, the rest in float32; the embedding is looked up, and the output is a matrix of its own."""
    writer = gguf.GGUFWriter(str(tmp_path / "small.gguf"), "qwen3moe")
    writer.add_block_count(3)
    writer.add_expert_count(8)
    writer.add_expert_used_count(2)
    for name in ("token_embd", "output", "blk.0.ffn_up", "blk.1.attn_q", "blk.1.ffn_up_shexp"):
        writer.add_tensor(f"{name}.weight", np.zeros((4, 32), dtype=np.float32))
    kind = gguf.GGMLQuantizationType.Q4_0
    for layer in (1, 2):
        for part in ("gate", "up", "down"):
            blocks = gguf.quantize(np.zeros((8, 4, 32), dtype=np.float32), kind)
            writer.add_tensor(f"blk.{layer}.ffn_{part}_exps.weight", blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tmp_path.joinpath("a.json").write_text(json.dumps([response(PROMPT, CHOICE, name=str(n)) for n in range(4)]))
    # The model's config says where the experts are, or the file itself does.
    for model in ("model", "small.gguf"):
        infer("experts", "import", "a.json", f"--model={model}")
        words = ("--model=small.gguf", "--gpu-memory=3000B")
        found = json.loads(infer("placement", "census.json", *words, "--format=json").stdout)
        one = 3 * 4 * 18
        assert found["sizes"]["expert_bytes"] == [one, one]
        assert (found["sizes"]["dense_bytes"], found["sizes"]["dense_read_bytes"]) == (5 * 512, 4 * 512)
        assert found["chosen"]["experts"] == (3000 - 5 * 512) // one
        line = infer(
            "placement", "census.json", "--model=small.gguf", "--gpu-memory=4500B", "--format=llama.cpp"
        ).stdout
        assert line == "--n-gpu-layers 999 --n-cpu-moe 2\n"
