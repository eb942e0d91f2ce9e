"""Two measurements against each other: what changed, whether it can be said, and the rules of a gate."""
