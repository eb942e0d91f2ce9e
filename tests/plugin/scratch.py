"""A repository of many commits with a scripted engine, whose cost steps at a known one."""

import subprocess

DECODE, SLOW = 0.01, 0.02
CONFTEST = """
import script

class Planned(Scripted):
    def generate(self, prompt_ids, limits, clock):
        self.delays = [0.01] + [script.DECODE] * 5
        return super().generate(prompt_ids, limits, clock)

    def decode(self, token_ids):
        return " ".join(map(str, token_ids))

@pytest.fixture(scope="session")
def engine():
    return Planned()
"""
PROMPTS = """
[[prompt]]
name = "first"
text = "one two three"
max_new_tokens = 6

[[prompt]]
name = "second"
text = "four five"
max_new_tokens = 6
"""


class History:
    """Commits one by one; `git` runs anything else."""

    def __init__(self, path):
        self.path = path
        path.joinpath(".gitignore").write_text("__pycache__\n.pytest_cache\n.benchmarks\nresults\n.cache\n")
        self.git("init", "-q", "-b", "main")

    def git(self, *args):
        who = ("-c", "user.name=A Name", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false")
        done = subprocess.run(["git", *who, *args], cwd=self.path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def commit(self, subject="a commit", decode=None, **files):
        """Return the hash of a new commit; `decode` is the seconds of a step from now on, `files` by their stems."""
        if decode is not None:
            self.path.joinpath("script.py").write_text(f"DECODE = {decode}\n")
        for stem, text in files.items():
            self.path.joinpath(f"{stem}.py").write_text(text)
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", subject)
        return self.git("rev-parse", "HEAD")

    def state(self):
        """Return what a bisection must not change."""
        folder = self.path / ".git"
        index = (folder / "index").read_bytes() if (folder / "index").exists() else None
        files = sorted(str(path.relative_to(self.path)) for path in self.path.rglob("*") if ".git/" not in f"{path}/")
        return (
            index,
            files,
            self.git("status", "--porcelain"),
            self.git("for-each-ref"),
            self.git("worktree", "list"),
            sorted(path.name for path in folder.glob("BISECT*")),
        )
