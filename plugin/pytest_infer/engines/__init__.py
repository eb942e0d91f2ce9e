"""What generates tokens: the Engine protocol, the look-up by entry point, transformers, and the bundled models."""
