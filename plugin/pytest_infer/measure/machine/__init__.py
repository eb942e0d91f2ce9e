"""The machine: what it is, its state now, and its probed rates."""
