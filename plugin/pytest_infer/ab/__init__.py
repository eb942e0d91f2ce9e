"""A/B: this checkout and another commit, measured in turns by two processes of which one waits."""
