"""How far the distribution of the next token moved between two sides that read the same text."""
