"""The suite file: what it may hold, and the one clear line for everything else."""

import json
from pathlib import Path

import not_files
import pytest

from pytest_infer import prompts
from pytest_infer.errors import SuiteError
from pytest_infer.prompts import Message, Prompt


@pytest.fixture
def load(tmp_path):
    def from_text(text, name="prompts.toml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return prompts.load(path)

    return from_text


def refused(call, *args):
    with pytest.raises(SuiteError) as caught:
        call(*args)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_every_key_of_a_prompt(load):
    (prompt,) = load(
        '[[prompt]]\nname = "a b"\ntext = "Hello"\nmax_new_tokens = 3\nstop = ["."]\ngroup = "g"\ntags = ["x", "y"]\n'
    )
    assert prompt == Prompt(name="a b", text="Hello", max_new_tokens=3, stop=(".",), group="g", tags=("x", "y"))


def test_defaults_are_those_of_every_prompt_that_says_nothing_else(load):
    first, second = load(
        '[defaults]\nmax_new_tokens = 7\nstop = ["!"]\ngroup = "g"\ntags = ["t"]\n'
        '[[prompt]]\nname = "a"\ntext = "x"\n[[prompt]]\nname = "b"\ntext = "y"\nmax_new_tokens = 2\nstop = []\n'
    )
    assert (first.max_new_tokens, first.stop, first.group, first.tags) == (7, ("!",), "g", ("t",))
    assert (second.max_new_tokens, second.stop, second.group, second.tags) == (2, (), "g", ("t",))


def test_without_a_limit_the_options_decide(load):
    (prompt,) = load('[[prompt]]\nname = "a"\ntext = "x"\n')
    assert prompt.max_new_tokens is None


def test_messages(load):
    (prompt,) = load('[[prompt]]\nname = "chat"\nmessages = [{role = "user", content = "Hi"}]\n')
    assert prompt.text is None
    assert prompt.messages == (Message(role="user", content="Hi"),)


def test_a_file_beside_the_suite(load, tmp_path):
    tmp_path.joinpath("long.txt").write_text("Größe\nzwei Zeilen\n", encoding="utf-8")
    (prompt,) = load('[[prompt]]\nname = "long"\nfile = "long.txt"\n')
    assert prompt.text == "Größe\nzwei Zeilen\n"


def test_jsonl_with_defaults_and_blank_lines(load):
    lines = ['{"defaults": {"max_new_tokens": 4}}', "", '{"name": "a", "text": "x"}', '{"name": "b", "text": "y"}']
    loaded = load("\n".join(lines), "suite.jsonl")
    assert [(p.name, p.text, p.max_new_tokens) for p in loaded] == [("a", "x", 4), ("b", "y", 4)]


def test_jsonl_and_toml_give_the_same_prompts(load):
    toml = load('[[prompt]]\nname = "a"\ntext = "x"\ntags = ["t"]\n')
    assert load('{"name": "a", "text": "x", "tags": ["t"]}', "suite.jsonl") == toml


BOM = b"\xef\xbb\xbf"
SUITES = {
    "prompts.toml": b'[[prompt]]\nname = "a"\ntext = """one\ntwo"""\n[[prompt]]\nname = "b"\nfile = "b.txt"\n',
    "suite.jsonl": b'{"name": "a", "text": "one\\ntwo"}\n{"name": "b", "file": "b.txt"}\n',
}


@pytest.mark.parametrize("name", SUITES)
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("mark", [b"", BOM], ids=["plain", "mark"])
def test_files_of_other_systems_are_the_same_prompts(tmp_path, name, end, mark):
    tmp_path.joinpath(name).write_bytes(mark + SUITES[name].replace(b"\n", end))
    tmp_path.joinpath("b.txt").write_bytes(mark + "Größe\nzwei\n".encode().replace(b"\n", end))
    found = prompts.load(tmp_path / name)
    assert [p.text for p in found] == ["one\ntwo", "Größe\nzwei\n"]
    assert found == tuple(Prompt(name=p.name, text=p.text) for p in found)
    assert found[1].content_sha256 == Prompt(name="b", text="Größe\nzwei\n").content_sha256


def test_joined_files_keep_no_mark(tmp_path):
    path = tmp_path / "joined.jsonl"
    path.write_bytes(b"".join(BOM + f'{{"name": "{n}", "text": "x"}}\r\n'.encode() for n in "abc") + BOM)
    assert [p.name for p in prompts.load(path)] == ["a", "b", "c"]


def test_a_mark_within_a_text_is_part_of_it(load, tmp_path):
    tmp_path.joinpath("long.txt").write_text("one\ufefftwo", encoding="utf-8")
    (prompt,) = load('[[prompt]]\nname = "long"\nfile = "long.txt"\n')
    assert prompt.text == "one\ufefftwo"
    (prompt,) = load('{"name": "a", "text": "\\ufeffx"}', "suite.jsonl")
    assert prompt.text == "\ufeffx"


def test_a_file_of_nothing_but_a_mark_is_empty(load, tmp_path):
    tmp_path.joinpath("long.txt").write_bytes(BOM)
    assert "the prompt is empty" in refused(load, '[[prompt]]\nname = "long"\nfile = "long.txt"\n')


@pytest.mark.parametrize("codec", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_says_so_where_it_is_marked(load, tmp_path, codec):
    text = '[[prompt]]\nname = "a"\ntext = "x"\n'
    path = tmp_path / "prompts.toml"
    path.write_bytes(text.encode("utf-16") if codec == "utf-16" else ("\ufeff" + text).encode(codec))
    assert "it is written as UTF-16: save it as UTF-8" in refused(prompts.load, path)
    tmp_path.joinpath("long.txt").write_bytes(("\ufeff" + "Hello").encode(codec))
    assert "it is written as UTF-16" in refused(load, '[[prompt]]\nname = "long"\nfile = "long.txt"\n')


def test_a_jsonl_line_may_hold_a_line_separator(load):
    # U+2028 is a line break to str.splitlines, and an ordinary character of a JSON string.
    text = json.dumps({"name": "a", "text": "one\u2028two"}, ensure_ascii=False)
    (prompt,) = load(text, "suite.jsonl")
    assert prompt.text == "one\u2028two"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[prompt]]\nname = "a"\ntext = \n', ["not valid TOML", "line 3"]),
        ('[[prompt]]\nname = "a"\ntetx = "x"\n', ["prompt 1 ('a')", "unknown key 'tetx'", "max_new_tokens", "text"]),
        ('[[prompts]]\nname = "a"\n', ["unknown table 'prompts'", "[[prompt]]"]),
        ('[prompt]\nname = "a"\n', ["write [[prompt]] for each prompt"]),
        ('[defaults]\nmax_tokens = 3\n[[prompt]]\nname = "a"\ntext = "x"\n', ["defaults", "'max_tokens'", "tags"]),
        ("", ["holds no prompt", "[[prompt]]"]),
        ('[[prompt]]\ntext = "x"\n', ["prompt 1", "name"]),
        ('[[prompt]]\nname = ""\ntext = "x"\n', ["the name must be printable"]),
        ('[[prompt]]\nname = "a\\u001b"\ntext = "x"\n', ["the name must be printable"]),
        ('[[prompt]]\nname = "a"\n', ["exactly one of text, file, messages"]),
        (
            '[[prompt]]\nname = "a"\ntext = "x"\nmessages = [{role = "user", content = "y"}]\n',
            ["'a'", "exactly one of text, file, messages"],
        ),
        ('[[prompt]]\nname = "a"\ntext = "  "\n', ["'a'", "the prompt is empty"]),
        ('[[prompt]]\nname = "a"\nmessages = []\n', ["the prompt is empty"]),
        ('[[prompt]]\nname = "a"\nmessages = [{role = "user", content = " "}]\n', ["the prompt is empty"]),
        ('[[prompt]]\nname = "a"\nmessages = [{role = "user", text = "y"}]\n', ["'a'", "unknown field `text`"]),
        ('[[prompt]]\nname = "a"\ntext = 3\n', ["'a'", "Expected `str", "$.text"]),
        ('[[prompt]]\nname = "a"\ntext = "x"\nmax_new_tokens = 0\n', ["max_new_tokens must be 1 or more, not 0"]),
        ('[[prompt]]\nname = "a"\ntext = "x"\nmax_new_tokens = "9"\n', ["Expected `int", "$.max_new_tokens"]),
        ('[[prompt]]\nname = "a"\ntext = "x"\nstop = [""]\n', ["a stop string is empty"]),
        ('[[prompt]]\nname = "a"\nfile = "no.txt"\n', ["'a'", "cannot read", "no.txt"]),
        (
            '[[prompt]]\nname = "a"\ntext = "x"\n[[prompt]]\nname = "a"\ntext = "y"\n',
            ["two prompts are named 'a'"],
        ),
    ],
)
def test_each_error_is_one_line_that_says_where(load, text, said):
    line = refused(load, text)
    assert "prompts.toml" in line
    for part in said:
        assert part in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"name": "a", "text": "x"}\n{"name": \n', ["suite.jsonl:2", "not valid JSON"]),
        ('{"name": "a", "txet": "x"}', ["'a'", "unknown key 'txet'", "text"]),
        ("[1]", ["prompt 1", "is a list"]),
        ("\n", ["holds no prompt"]),
    ],
)
def test_each_error_of_jsonl(load, text, said):
    line = refused(load, text, "suite.jsonl")
    for part in said:
        assert part in line


@pytest.mark.parametrize("key", ["text", "stop", "group", "messages"])
def test_half_a_surrogate_pair_is_refused(load, key):
    # JSON can write one; UTF-8, the hash and the results file cannot.
    half = {
        "text": "x\ud800",
        "stop": ["\ud800"],
        "group": "\ud800",
        "messages": [{"role": "user", "content": "\ud800"}],
    }
    entry = {"name": "a", **({} if key == "messages" else {"text": "x"}), key: half[key]}
    assert "'a'" in refused(load, json.dumps(entry), "suite.jsonl")


def test_a_name_that_no_file_can_have_is_refused(load):
    assert "cannot read" in refused(load, '[[prompt]]\nname = "a"\nfile = "x\\u0000y"\n')


def test_a_wrong_value_among_the_defaults_is_said_of_the_prompt_that_takes_it(load):
    line = refused(load, '[defaults]\nmax_new_tokens = "many"\n[[prompt]]\nname = "a"\ntext = "x"\n')
    assert "Expected `int" in line


def test_a_missing_suite_says_what_to_do(tmp_path):
    line = refused(prompts.load, tmp_path / "none.toml")
    assert "none.toml: no such prompt suite" in line
    assert "--infer-prompts" in line


def test_a_folder_is_no_suite(tmp_path):
    assert "cannot be read" in refused(prompts.load, tmp_path)


def test_another_kind_of_file_is_refused(load):
    assert ".toml or a .jsonl" in refused(load, "name: a", "suite.yaml")


def test_text_that_is_not_utf8(tmp_path):
    path = tmp_path / "prompts.toml"
    path.write_bytes(b'[[prompt]]\nname = "\xff"\n')
    assert "UTF-8" in refused(prompts.load, path)


def test_a_marker_takes_texts_tables_and_prompts():
    ready = Prompt(name="ready", text="z")
    given = prompts.from_marker(["x", {"name": "b", "text": "y", "max_new_tokens": 2}, ready], "test.py::t", Path())
    assert [(p.name, p.text, p.max_new_tokens) for p in given] == [
        ("prompt-1", "x", None),
        ("b", "y", 2),
        ("ready", "z", None),
    ]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("text", "takes a list"),
        (7, "takes a list"),
        ([7], "prompt 1 is a int"),
        ([""], "the prompt is empty"),
        ([Prompt(name="a", text=" ")], "the prompt is empty"),
        ([Prompt(name="a")], "exactly one of"),
        ([{"name": "a"}], "exactly one of"),
        (["x", {"name": "prompt-1", "text": "y"}], "two prompts are named"),
    ],
)
def test_a_wrong_marker_names_its_test(given, said):
    line = refused(prompts.from_marker, given, "test.py::t", Path())
    assert line.startswith("test.py::t")
    assert said in line


def test_an_error_in_a_marker_names_the_number_of_the_prompt():
    assert "prompt 2" in refused(prompts.from_marker, ["x", {"name": "a"}], "test.py::t", Path())


def test_the_content_hash_is_that_of_the_json_of_the_content():
    # Computed apart: printf '"Hello"' | sha256sum
    assert (
        Prompt(name="a", text="Hello").content_sha256
        == "c25bf945aaff8fe16826d3c1ef117044d6cc1af8e0e9f0b4162308460a8207a7"
    )


def test_the_content_hash_depends_on_the_content_alone():
    one = Prompt(name="a", text="Hello", max_new_tokens=1)
    other = Prompt(name="b", text="Hello", max_new_tokens=9, stop=("x",), group="g", tags=("t",))
    assert one.content_sha256 == other.content_sha256
    assert one.content_sha256 != Prompt(name="a", text="Hello ").content_sha256


def test_the_content_hash_of_a_dialogue():
    user, system = Message(role="user", content="Hi"), Message(role="system", content="Hi")
    hashes = {
        Prompt(name="a", messages=(user,)).content_sha256,
        Prompt(name="a", messages=(system,)).content_sha256,
        Prompt(name="a", messages=(user, system)).content_sha256,
        Prompt(name="a", text="Hi").content_sha256,
    }
    assert len(hashes) == 4


def test_the_content_hash_of_a_dialogue_is_that_of_its_roles_and_contents():
    # Computed apart: printf '[["user", "Hi ü"]]' | sha256sum
    prompt = Prompt(name="a", messages=(Message(role="user", content="Hi ü"),))
    assert prompt.content_sha256 == "a2578decccf02859eda970a375e23ce2d671b2ce0f289e0f24f31cbb51642291"


def test_the_content_hash_does_not_say_where_the_text_came_from(load, tmp_path):
    tmp_path.joinpath("long.txt").write_text("Größe\n", encoding="utf-8")
    (from_file,) = load('[[prompt]]\nname = "a"\nfile = "long.txt"\n')
    (from_text,) = load('[[prompt]]\nname = "a"\ntext = "Größe\\n"\n')
    (from_lines,) = load('{"name": "a", "text": "Gr\\u00f6\\u00dfe\\n"}', "suite.jsonl")
    assert from_file == from_text == from_lines
    assert from_file.content_sha256 == from_text.content_sha256


DEEP = "[" * 3000 + "]" * 3000


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("prompts.toml", b'[[prompt]]\nname = "a"\ntext = "\xff"\n'),
        ("prompts.toml", f"prompt = {DEEP}\n".encode()),
        ("prompts.toml", b'[[prompt]]\nname = "a"\ntext = "x"\nmax_new_tokens = ' + b"9" * 5000),
        ("prompts.jsonl", b'{"name": "a", "text": "\xff"}\n'),
        ("prompts.jsonl", f'{{"name": "a", "text": {DEEP}}}\n'.encode()),
        ("prompts.jsonl", b'{"name": "a", "text": "x", "max_new_tokens": ' + b"9" * 5000 + b"}\n"),
        ("prompts.jsonl", b"\0" * 100),
    ],
)
def test_a_damaged_suite_is_one_line(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    assert str(path) in refused(prompts.load, path)


@not_files.needs_posix
@pytest.mark.timeout(120)
@pytest.mark.parametrize("make", not_files.EVERY, ids=lambda make: make.__name__)
def test_what_is_no_file_is_never_opened(load, tmp_path, make):
    make(tmp_path / "odd.toml")
    assert "not a file" in refused(prompts.load, tmp_path / "odd.toml")
    assert "not a file" in refused(load, '[[prompt]]\nname = "a"\nfile = "odd.toml"\n')


def test_a_suite_too_large_is_not_read(load, tmp_path):
    for name in ("large.toml", "large.txt"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(2**40)
    assert "too large: 1.00 TiB" in refused(prompts.load, tmp_path / "large.toml")
    assert "too large: 1.00 TiB" in refused(load, '[[prompt]]\nname = "a"\nfile = "large.txt"\n')
