"""Which experts to keep on the GPU, and what that gains."""
