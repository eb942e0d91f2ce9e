"""`pytest-infer bisect`: which commit made inference slower, found by A/B runs at the commits that git chooses."""
