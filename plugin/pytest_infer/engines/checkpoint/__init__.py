"""A model's files, read without loading a weight: config, headers, sizes and hash."""
