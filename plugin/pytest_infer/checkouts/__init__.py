"""Checkouts of the user's repository: another commit in a worktree, and how code is imported from it."""
