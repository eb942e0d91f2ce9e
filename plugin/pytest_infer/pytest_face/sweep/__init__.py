"""Sweeps and curves in a run: their configurations, their order, and the first test measured again."""
