"""Which experts a model's routers selected: where they sit, how they are tapped, and their counts."""
