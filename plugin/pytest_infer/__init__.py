"""pytest-infer: exact benchmarks of language-model inference under pytest."""
