"""Stored runs, listed and as one table."""
