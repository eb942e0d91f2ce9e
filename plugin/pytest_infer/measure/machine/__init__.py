"""The machine: what it is, the state it is in, and what it was probed to do."""
