"""pytest-infer: exact benchmarks of language-model inference under pytest.

PYTEST_DONT_REWRITE: there is no assert to rewrite, and `pytest-benchmark compare` imports us before it sets pytest up.
"""
