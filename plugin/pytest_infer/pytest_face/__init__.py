"""What pytest sees: options, fixtures, collection, the session of a run, and its gate."""
