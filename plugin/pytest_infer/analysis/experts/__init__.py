"""Expert usage of a run: shares, skew, overlap, differences and drift."""
