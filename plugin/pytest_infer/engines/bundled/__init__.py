"""The models that need no hub: SmolLM2-135M from a package, and a mixture of experts made from it."""
