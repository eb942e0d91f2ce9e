"""Comparisons and gates, for people and for programs."""
