"""Turns of a token with a real model: they change neither its tokens, nor its memory, nor which experts it takes."""

import pytest
from test_bench_models import bench

pytestmark = [pytest.mark.real, pytest.mark.slow]

EXACT = (
    "prompt_tokens", "generated_tokens", "output_sha256", "model_bytes", "kv_cache_bytes", "expert_selections",
)  # fmt: skip


def test_turns_of_a_token_change_nothing_but_when_a_token_is_computed(tmp_path):
    for name in ("plain", "turns"):
        (tmp_path / name).mkdir()
    chosen = ("-k", "code or story", "--infer-threads=1")
    # Both sides keep router choices token by token, to tell how far they are apart.
    plain = bench(tmp_path / "plain", *chosen, "--infer-experts=trace")
    turns = bench(
        tmp_path / "turns", *chosen, "--infer-against=self", "--infer-launches=2", "--infer-time=2s",
        "--infer-gate=off",
    )  # fmt: skip
    assert set(plain) == set(turns)
    for name, block in turns.items():
        for side in (block["metrics"], block["against"]["metrics"]):
            assert {key: side[key]["value"] for key in EXACT} == {
                key: plain[name]["metrics"][key]["value"] for key in EXACT
            }
        assert block["experts"] == plain[name]["experts"]
        # None of a thousand tokens in turns was another one.
        assert block["against"]["turns"]["strayed"] == 0
        assert block["against"]["turns"]["cycles"] >= 1
        # The same weights, caches and libraries, in processes of another age.
        ours, alone = (one["peak_rss_bytes"]["value"] for one in (block["metrics"], plain[name]["metrics"]))
        assert abs(ours / alone - 1) < 0.1
