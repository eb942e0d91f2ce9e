"""What git leaves out of a worktree, what it refuses, and whose worktrees are removed: in real repositories."""

import shutil

import pytest
from test_worktree import checkout, commit, git, left  # noqa: F401 - a fixture

from pytest_infer.checkouts.git import why_not_in
from pytest_infer.checkouts.worktree import Repository, Worktree, remove_abandoned
from pytest_infer.errors import AgainstError, StorageError, UnknownCommitError
from pytest_infer.storage.code import code_state

ALLOWED = ("-c", "protocol.file.allow=always")


@pytest.fixture
def nested(tmp_path, monkeypatch):
    """A checkout whose submodule `lib` has a submodule `deep`, each of two commits; no remote can be reached later."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in ("deep", "lib", "top"):
        tmp_path.joinpath(name).mkdir()
        git(tmp_path / name, "init", "-q", "-b", "main")
        commit(tmp_path / name, f"{name} one")
    for inner, outer in (("deep", "lib"), ("lib", "top")):
        git(tmp_path / outer, *ALLOWED, "submodule", "add", "-q", str(tmp_path / inner), inner)
        git(tmp_path / outer, "commit", "-q", "-m", "with a submodule")
    git(tmp_path / "top", *ALLOWED, "submodule", "update", "--init", "--recursive", "-q")
    used = tmp_path / "top" / "lib"
    commit(used, "lib two")
    git(tmp_path / "top", "commit", "-q", "-am", "a later lib")
    for name in ("deep", "lib"):
        shutil.rmtree(tmp_path / name)
    return tmp_path / "top"


def made(folder, rev):
    repository = Repository.of(folder)
    return Worktree(repository, repository.commit(rev))


def test_submodules_are_those_of_the_commit_and_come_from_the_checkout_itself(nested, tmp_path):
    before = git(nested, "status", "--porcelain"), git(nested / "lib", "rev-parse", "HEAD")
    worktree = made(nested, "HEAD~1")
    assert worktree.missing == ()
    assert (worktree.path / "lib/file.txt").read_text() == "lib one"
    assert (worktree.path / "lib/deep/file.txt").read_text() == "deep one"
    assert git(worktree.path, "status", "--porcelain") == ""
    git(worktree.path, "checkout", "-q", "--detach", "main")
    assert worktree.complete() == ()
    assert (worktree.path / "lib/file.txt").read_text() == "lib two"
    worktree.remove()
    assert left(tmp_path) == []
    assert (git(nested, "status", "--porcelain"), git(nested / "lib", "rev-parse", "HEAD")) == before
    assert git(nested / "lib", "worktree", "list").count("\n") == 0


def test_one_that_is_not_checked_out_any_more_comes_from_what_git_keeps_of_it(nested):
    git(nested, "submodule", "deinit", "-q", "--force", "lib")
    worktree = made(nested, "main")
    assert worktree.missing == ()
    assert (worktree.path / "lib/file.txt").read_text() == "lib two"
    worktree.remove()


def test_a_worktree_of_a_worktree_has_them_too(nested, tmp_path):
    linked = tmp_path / "linked"
    git(nested, "worktree", "add", "-q", str(linked), "HEAD~1")
    worktree = made(linked, "main")
    assert worktree.missing == ()
    assert (worktree.path / "lib/file.txt").read_text() == "lib two"
    worktree.remove()


def test_what_is_missing_is_named_with_the_remedy(nested):
    git(nested, "submodule", "deinit", "-q", "--force", "lib")
    shutil.rmtree(nested / ".git/modules/lib")
    worktree = made(nested, "main")
    (line,) = worktree.missing
    assert line.startswith("submodule lib is empty there: ")
    assert "git submodule update --init" in line
    worktree.remove()


def test_a_commit_that_the_copy_lacks_is_named(nested):
    blob = git(nested, "update-index", "--cacheinfo", f"160000,{'1' * 40},lib")
    assert blob == ""
    git(nested, "commit", "-q", "-m", "a lib that nobody has fetched")
    worktree = made(nested, "main")
    (line,) = worktree.missing
    assert "lacks 111111111111" in line
    assert "fetch" in line
    worktree.remove()


def test_pointers_of_git_lfs_are_named(checkout):  # noqa: F811
    checkout.joinpath(".gitattributes").write_text("*.bin filter=lfs\n")
    for name in ("a.bin", "b.bin"):
        checkout.joinpath(name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    checkout.joinpath("c.bin").write_text("fetched")
    git(checkout, "-c", "filter.lfs.clean=", "add", "-A")
    git(checkout, "commit", "-q", "-m", "large files")
    worktree = made(checkout, "main")
    assert worktree.missing == ("a.bin, b.bin are pointers of git-lfs there, not the file itself: git lfs fetch --all",)
    worktree.remove()


# what git refuses


def test_a_repository_of_another_user_is_named_with_the_remedy(checkout, monkeypatch):  # noqa: F811
    assert why_not_in(checkout) is None
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(UnknownCommitError, match=r"does not trust .*safe\.directory") as refused:
        Repository.of(checkout)
    assert "is in none" not in str(refused.value)
    assert f"safe.directory {checkout}" in str(refused.value)
    assert code_state(checkout) is None
    assert "safe.directory" in why_not_in(checkout)


def test_a_commit_that_git_may_not_resolve_is_no_run_that_is_missing(checkout, storage, make_block, monkeypatch):  # noqa: F811
    storage.add([make_block()])
    monkeypatch.chdir(checkout)
    with pytest.raises(StorageError, match="no run 'HEAD~1'") as missing:
        storage.load().select("HEAD~1")
    assert "safe.directory" not in str(missing.value)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(StorageError, match=r"names of commits are not resolved: git does not trust .*safe\.directory"):
        storage.load().select("HEAD~1")


def test_a_bare_repository_is_called_one(checkout, tmp_path, monkeypatch):  # noqa: F811
    bare = tmp_path / "bare.git"
    git(tmp_path, "clone", "-q", "--bare", str(checkout), str(bare))
    with pytest.raises(UnknownCommitError, match="is a bare repository: run in a checkout"):
        Repository.of(bare)
    with pytest.raises(UnknownCommitError, match="git's own folder"):
        Repository.of(checkout / ".git")
    for name, value in (("COUNT", "1"), ("KEY_0", "safe.bareRepository"), ("VALUE_0", "explicit")):
        monkeypatch.setenv(f"GIT_CONFIG_{name}", value)
    with pytest.raises(UnknownCommitError, match=r"no bare repository that it merely finds \(safe.bareRepository\)"):
        Repository.of(bare)


def test_a_repository_without_commits_says_so(tmp_path):
    git(tmp_path, "init", "-q", "-b", "main")
    with pytest.raises(AgainstError, match="this repository has no commits yet"):
        Repository.of(tmp_path).commit("main")


def test_no_git_and_no_repository_are_told_apart(checkout, tmp_path, monkeypatch):  # noqa: F811
    with pytest.raises(UnknownCommitError, match="is in none"):
        Repository.of(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnknownCommitError, match="needs git, which is not on the PATH"):
        Repository.of(checkout)
    assert why_not_in(checkout) == "git is not on the PATH"
    outside = tmp_path / "outside"
    outside.mkdir()
    assert why_not_in(outside) is None


# whose worktrees are removed


@pytest.mark.parametrize("mark", [None, "", "somewhere/else"])
def test_a_users_own_worktree_is_never_removed_whatever_it_is_called(checkout, tmp_path, mark):  # noqa: F811
    theirs = tmp_path / "pytest-infer-experiments"
    theirs.mkdir()
    theirs.joinpath("lock").write_text("")
    theirs.joinpath("thesis.txt").write_text("three years")
    if mark is not None:
        theirs.joinpath("made-by-pytest-infer").write_text(mark)
    git(checkout, "worktree", "add", "-q", "--detach", str(theirs / "base"))
    remove_abandoned(Repository.of(checkout))
    assert (theirs / "base/file.txt").read_text() == "two"
    assert (theirs / "thesis.txt").read_text() == "three years"


def test_what_somebody_put_beside_ours_stays(checkout, tmp_path):  # noqa: F811
    worktree = made(checkout, "main")
    worktree.path.parent.joinpath("notes.txt").write_text("mine")
    worktree.remove()
    assert [path.name for path in worktree.path.parent.iterdir()] == ["notes.txt"]
