"""What an engine answers: its slips are named in one line, before anything is made of them."""

import array
from pathlib import Path

import pytest

from pytest_infer.errors import EngineError
from pytest_infer.measure import answers
from pytest_infer.records import ModelInfo


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"parameters": 7e9}, "Expected `int | null`, got `float` - at `$.parameters`"),
        ({"device": 0}, "got `int` - at `$.device`"),
        ({"dtype": float}, "got `type` - at `$.dtype`"),
        ({"source": Path("model")}, "Path` - at `$.source`"),
        ({"versions": {"mine": (1, 2)}}, "- at `$.versions[...]`"),
        ({"generation": {"stop": ["a"]}}, "- at `$.generation[...]`"),
    ],
)
def test_a_field_of_another_type_is_named(told, message):
    with pytest.raises(EngineError) as raised:
        answers.model(ModelInfo(name="mine", engine="mine", **told), "Engine.load")
    assert str(raised.value).startswith("Engine.load gives a ModelInfo that cannot be stored: ")
    assert message in str(raised.value)


@pytest.mark.parametrize("found", [None, {"name": "mine"}])
def test_a_description_is_a_model_info(found):
    with pytest.raises(EngineError, match=r"Engine\.load gives a (NoneType|dict), not a ModelInfo"):
        answers.model(found, "Engine.load")


@pytest.mark.parametrize(("found", "kept"), [(None, None), ("a nonce", "a nonce"), ("half \ud83d", "half ?")])
def test_words_are_a_text_that_can_be_written_or_none(found, kept):
    assert answers.words(found, "Engine.varied") == kept


@pytest.mark.parametrize("found", [True, b"a nonce", ["a nonce"]])
def test_what_is_no_text_is_named(found):
    with pytest.raises(EngineError, match=r"Engine\.varied gives a (bool|bytes|list), neither a text nor None"):
        answers.words(found, "Engine.varied")


@pytest.mark.parametrize("found", [(1, 2), array.array("q", [1, 2]), range(1, 3)])
def test_ids_may_come_as_any_row_of_whole_numbers(found):
    assert answers.ids(found) == [1, 2]


@pytest.mark.parametrize("found", [None, "12", [[1, 2]], [1.0, 2.0], ["1"]])
def test_what_is_no_row_of_ids_is_named(found):
    """A batch of one prompt counted as one token."""
    with pytest.raises(EngineError, match=r"Engine\.encode gives no list of token ids: "):
        answers.ids(found)
