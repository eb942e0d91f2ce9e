"""Sweeps and curves on a terminal."""
