"""Names of models: what is refused, and how results name what is left."""

import pytest

from pytest_infer.engines import models
from pytest_infer.errors import ModelError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    made = tmp_path / "mine"
    made.mkdir()
    (made / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return made


@pytest.mark.parametrize("name", ["reference-moe", "smollm2", "owner/name", "mine", "./mine", "./mine/"])
def test_good_names(folder, name):
    models.check_name(name)
    # A folder is one by its config, and every other name is good without it.
    (folder / "config.json").unlink()
    if "mine" in name:
        with pytest.raises(ModelError, match=r"holds no config\.json"):
            models.check_name(name)
    else:
        assert models.check_name(name) is None


@pytest.mark.parametrize("name", ["", "bareword", "./missing", "/missing", "a/b/c", "~missing/x", "C:\\models\\x", "."])
def test_bad_names(folder, name):
    with pytest.raises(ModelError) as caught:
        models.check_name(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["mine/m.gguf", "./mine/m.gguf", "{folder}/m.gguf"])
def test_a_file_is_never_asked_of_the_hub_and_named_alike_however_it_is_typed(folder, name):
    (folder / "m.gguf").touch()
    name = name.format(folder=folder)
    with pytest.raises(ModelError, match=r"a file, .* --infer-engine llamacpp"):
        models.check_name(name)
    assert models.display_name(name) == "m.gguf"


@pytest.mark.parametrize("name", ["reference-moe", "mine"])
def test_only_hub_models_have_revisions(folder, name):
    with pytest.raises(ModelError, match="has no revisions: leave out the revision v1"):
        models.check_name(name, "v1")
    models.check_name("owner/name", "v1")


@pytest.mark.parametrize(
    ("name", "shown", "origin"),
    [
        ("reference-moe", "reference-moe", None),
        ("owner/name", "owner/name", "owner/name"),
        ("mine", "mine", "local folder"),
        ("./mine/", "mine", "local folder"),
        ("../{parent}/mine", "mine", "local folder"),
        ("{folder}", "mine", "local folder"),
    ],
)
def test_results_name_a_folder_without_its_path(folder, name, shown, origin):
    name = name.format(folder=folder, parent=folder.parent.name)
    assert models.display_name(name) == shown
    assert models.origin(name) == origin


@pytest.mark.parametrize(
    ("name", "shown"), [("/home/someone/models/llama", "llama"), ("C:\\Users\\someone\\llama", "llama"), ("", "")]
)
def test_a_folder_that_is_gone_is_named_without_its_path(name, shown):
    assert models.display_name(name) == shown
