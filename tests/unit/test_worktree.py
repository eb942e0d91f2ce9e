"""Another commit's files, in real git repositories, and the one line for each that cannot be had."""

import errno
import os
import subprocess
import sys

import pytest

from pytest_infer.checkouts.worktree import Repository, Worktree, remove_abandoned
from pytest_infer.errors import AgainstError


def git(folder, *args):
    identity = ["-c", "user.name=T", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *args], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit(folder, text):
    folder.joinpath("file.txt").write_text(text)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", text)
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    commit(folder, "one")
    commit(folder, "two")
    return folder


def left(tmp_path):
    return [path.name for path in tmp_path.glob("pytest-infer-*")]


def test_a_commit_is_checked_out_and_removed_again(checkout, tmp_path):
    repository = Repository.of(checkout)
    first = repository.commit("HEAD~1")
    checkout.joinpath("file.txt").write_text("three, uncommitted")
    worktree = Worktree(repository, first)
    assert worktree.path.joinpath("file.txt").read_text() == "one"
    assert git(worktree.path, "rev-parse", "HEAD") == first
    assert git(checkout, "branch", "--show-current") == "main"
    worktree.path.joinpath("built.txt").write_text("not committed")
    worktree.remove()
    assert left(tmp_path) == []
    assert git(checkout, "worktree", "list").count("\n") == 0
    assert checkout.joinpath("file.txt").read_text() == "three, uncommitted"


def test_what_a_killed_run_left_is_removed_by_the_next(checkout, tmp_path):
    repository = Repository.of(checkout)
    code = (
        "import os, sys; from pathlib import Path; from pytest_infer.checkouts.worktree import Repository, Worktree\n"
        "r = Repository(Path(sys.argv[1])); Worktree(r, r.commit('HEAD')); os.kill(os.getpid(), 9)"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code, str(checkout)], env=environment, check=False)
    (abandoned,) = left(tmp_path)
    in_use = Worktree(repository, repository.commit("HEAD"))
    assert left(tmp_path) == [in_use.path.parent.name] != [abandoned]
    other = Worktree(repository, repository.commit("HEAD"))
    assert in_use.path.joinpath("file.txt").exists(), "the run beside us lost its files"
    other.remove()
    in_use.remove()
    assert left(tmp_path) == []


def test_a_worktree_whose_folder_is_gone_is_forgotten_too(checkout, tmp_path):
    repository = Repository.of(checkout)
    worktree = Worktree(repository, repository.commit("main"))
    git(checkout, "worktree", "lock", str(worktree.path))
    worktree.remove()
    assert git(checkout, "worktree", "list").count("\n") == 0


def test_the_repository_is_that_of_the_folder(checkout, tmp_path, monkeypatch):
    sub = checkout / "sub" / "folder"
    sub.mkdir(parents=True)
    assert Repository.of(sub).root == checkout.resolve()
    link = tmp_path / "link"
    link.symlink_to(sub)
    assert Repository.of(link).root == checkout.resolve()
    # As in a hook of another repository.
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    assert Repository.of(sub).root == checkout.resolve()


@pytest.mark.parametrize("rev", ["main", "HEAD", "HEAD~1", "v1", "HEAD^{/one}"])
def test_a_revision_is_whatever_git_finds(checkout, rev):
    git(checkout, "tag", "v1")
    assert Repository.of(checkout).commit(rev) == git(checkout, "rev-parse", rev)


@pytest.mark.parametrize("rev", ["nowhere", "HEAD~2", "--help", "-q", "", "HEAD:file.txt", "a b"])
def test_an_unknown_revision_is_one_line(checkout, rev):
    with pytest.raises(AgainstError, match="git finds no such commit; give a branch, tag or commit") as refused:
        Repository.of(checkout).commit(rev)
    assert "\n" not in str(refused.value)


def test_a_shallow_clone_says_what_to_fetch(checkout, tmp_path):
    git(tmp_path, "clone", "-q", "--depth=1", f"file://{checkout}", "shallow")
    repository = Repository.of(tmp_path / "shallow")
    assert repository.commit("HEAD")
    with pytest.raises(AgainstError, match=r"shallow clone; run `git fetch --unshallow`"):
        repository.commit("HEAD~1")


def test_outside_git(tmp_path):
    with pytest.raises(AgainstError, match=r"needs a git checkout, and .* is in none: fatal: not a git repository"):
        Repository.of(tmp_path)


def test_without_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AgainstError, match=r"needs git, which is not on the PATH"):
        Repository.of(tmp_path)


def test_a_commit_that_cannot_be_checked_out(checkout, tmp_path):
    repository = Repository.of(checkout)
    with pytest.raises(AgainstError, match=r"git cannot check 0{12} out: fatal: "):
        Worktree(repository, "0" * 40)
    assert left(tmp_path) == []


@pytest.mark.parametrize("full", ["tempfile.mkdtemp", "pathlib.Path.write_text"])
def test_a_temporary_folder_that_takes_nothing_is_one_line_and_leaves_none(checkout, tmp_path, monkeypatch, full):
    def fail(*args, **more):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(full, fail)
    with pytest.raises(AgainstError, match=r"^no temporary folder: No space left on device; name another one with TM"):
        Worktree(Repository.of(checkout), "HEAD")
    assert left(tmp_path) == []


@pytest.mark.parametrize("error", [NotImplementedError("no flock"), OSError(errno.ENOLCK, "No locks available")])
def test_a_file_system_without_locks_will_do(checkout, tmp_path, monkeypatch, error):
    def fail(self, *args, **more):
        raise error

    monkeypatch.setattr("pytest_infer.checkouts.worktree.FileLock.acquire", fail)
    worktree = Worktree(Repository.of(checkout), "HEAD~1")
    # Who cannot tell whether it is in use leaves it alone.
    remove_abandoned(Repository.of(checkout))
    assert worktree.path.joinpath("file.txt").read_text() == "one"
    worktree.remove()
    assert left(tmp_path) == []


def test_only_changes_of_tracked_files_are_dirty(checkout):
    repository = Repository.of(checkout)
    checkout.joinpath("other.txt").write_text("new")
    assert not repository.dirty()
    checkout.joinpath("file.txt").write_text("changed")
    assert repository.dirty()


def test_hooks_do_not_run(checkout):
    hook = checkout / ".git" / "hooks" / "post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\ntouch hooked\n")
    hook.chmod(0o755)
    repository = Repository.of(checkout)
    worktree = Worktree(repository, repository.commit("HEAD"))
    assert not worktree.path.joinpath("hooked").exists()
    worktree.remove()
