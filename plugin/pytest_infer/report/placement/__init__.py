"""A plan of which experts to keep on the GPU, for people and for programs."""
