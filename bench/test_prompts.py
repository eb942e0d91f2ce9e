"""Every prompt of prompts.toml, measured."""


def test_prompt(infer, prompt):
    record = infer(prompt)
    assert record.output.equal, "the same prompt gave different tokens in different rounds"
