"""The command line `pytest-infer …`."""
