"""Sweeps and curves: the axes, the ratios between configurations, and what they recommend."""
