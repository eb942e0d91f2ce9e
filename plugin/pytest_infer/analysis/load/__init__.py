"""Load tests: the curve of latency against throughput, and its knee."""
