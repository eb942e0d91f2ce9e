"""Expert usage, for people and for programs."""
