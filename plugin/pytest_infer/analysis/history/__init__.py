"""Stored runs over time: since when a metric has been at another level, and all of them as one table."""
