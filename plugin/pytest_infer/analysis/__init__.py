"""Pure functions over records and stored runs."""
