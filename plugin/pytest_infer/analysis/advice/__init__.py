"""Advice about a run: rules over its metrics, each with its evidence and what to try."""
