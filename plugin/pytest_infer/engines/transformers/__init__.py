"""The transformers engine: finds, loads or adopts a model, and generates with it."""
