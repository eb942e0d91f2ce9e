"""A prompt that a tokenizer or chat template cannot take is one line with its name, before a model is loaded."""

import pytest
from lazily import Late, transformers

from pytest_infer.engines.base import EngineOptions
from pytest_infer.errors import ModelError
from pytest_infer.prompts import Message, Prompt

tokenizers = Late("tokenizers")
pytestmark = pytest.mark.real

DIALOGUE = Prompt(
    name="sys", messages=(Message(role="system", content="Be brief."), Message(role="user", content="Hi"))
)
ONE_TURN = Prompt(name="plain", messages=(Message(role="user", content="Hi"),))
REFUSES = "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
REFUSES += "{% endif %}{{ m['content'] }}{% endfor %}"


@pytest.fixture
def engine_with(model_folder, tmp_path):
    """Return a function: a chat template, or files by name, to an engine whose folder holds them and no weights."""
    from pytest_infer.engines.transformers.engine import TransformersEngine

    def make(template=None, **files):
        for file in model_folder("llama").iterdir():
            # What is no weights file cannot be loaded.
            content = bytes(16) if file.suffix == ".safetensors" else file.read_bytes()
            (tmp_path / file.name).write_bytes(content)
        if template is not None:
            (tmp_path / "chat_template.jinja").write_text(template)
        for name, save in files.items():
            save(tmp_path / name)
        return TransformersEngine(EngineOptions(model=str(tmp_path)))

    return make


def refusal(engine, prompt):
    engine._tokenizer = transformers.AutoTokenizer.from_pretrained(engine.options.model)
    with pytest.raises(ModelError) as caught:
        engine.encode(prompt)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"prompt {prompt.name!r}: ")
    return line


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (REFUSES, "refuses it: System role not supported; change the prompt's messages"),
        ("{{ raise_exception('two\nlines') }}", "refuses it: two lines"),
        ("{{ raise_exception('') }}", "refuses it: TemplateError"),
        ("ok\n{% if %}{% endif %}", "syntax error in line 2: "),
        ("{% for m in messages %}", "syntax error in line 1: "),
        ("{{ messages[0]['content'] | nosuchfilter }}", "syntax error in line 1: No filter named 'nosuchfilter'"),
        ("{{ messages.append(1) }}", "does what templates may not: access to attribute 'append'"),
        ("{{ ''.__class__.__mro__ }}", "does what templates may not: access to attribute '__class__'"),
        ("{% for n in range(99999999) %}x{% endfor %}", "refuses it: Range too big"),
        ("{{ messages[0].nothing.more }}", "refuses it: "),
        ("{{ 1 / 0 }}", "refuses it: division by zero"),
        ("{{ messages[0]['content'] + 1 }}", "refuses it: can only concatenate str"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "refuses it: nested too deeply"),
    ],
    ids=str,
)
def test_whatever_a_template_raises_names_the_prompt(engine_with, template, says):
    assert says in refusal(engine_with(template), DIALOGUE)


def test_a_template_takes_what_it_takes(engine_with):
    engine = engine_with(REFUSES)
    engine.check()
    assert engine.decode(engine.encode(ONE_TURN)) == "Hi"


def words(unknown=None):
    """Return a function that writes a tokenizer that knows one word."""

    def save(path):
        made = tokenizers.Tokenizer(
            tokenizers.models.WordLevel({"known": 0, "<unk>": 1}, unk_token=unknown or "<gone>")
        )
        made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        made.save(str(path))

    return save


def test_a_tokenizer_that_fails_names_the_prompt(engine_with):
    engine = engine_with(**{"tokenizer.json": words()})
    line = refusal(engine, Prompt(name="strange", text="known stranger"))
    assert "cannot take it: " in line
    assert "UNK" in line


def test_a_tokenizer_with_an_unknown_token_takes_all(engine_with):
    engine = engine_with(**{"tokenizer.json": words("<unk>")})
    engine._tokenizer = transformers.AutoTokenizer.from_pretrained(engine.options.model)
    assert engine.encode(Prompt(name="strange", text="known stranger")) == [0, 1]


def test_ids_of_nothing_name_the_prompt(engine_with, monkeypatch):
    engine = engine_with()

    class Without:
        chat_template = "{{ messages }}"

        def __call__(self, text):
            return {"input_ids": [3, None]}

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_: Without())
    assert "has no id for a part of it" in refusal(engine, Prompt(name="hole", text="a hole"))


SUITE = """
[[prompt]]
name = "plain"
text = "Hello"
[[prompt]]
name = "sys"
messages = [{role = "system", content = "Be brief."}, {role = "user", content = "Hi"}]
"""


@pytest.mark.parametrize("template", [REFUSES, "{% if %}", "{{ messages.clear() }}"], ids=["role", "syntax", "sandbox"])
def test_no_test_runs_and_no_model_is_loaded(forked, engine_with, template):
    engine = engine_with(template)
    forked.makepyfile("def test_prompt(infer, prompt):\n    infer(prompt)\n")
    forked.path.joinpath("prompts.toml").write_text(SUITE)
    result = forked.runpytest_subprocess(f"--infer-model={engine.options.model}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: pytest-infer: prompt 'sys': the chat template of *"])
    assert "Traceback" not in str(result.stderr) + str(result.stdout)
