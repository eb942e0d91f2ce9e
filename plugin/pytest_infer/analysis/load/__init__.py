"""Load tests: the curve of latency against throughput, its knee, and what a level does to the objectives."""
