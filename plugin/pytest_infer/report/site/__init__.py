"""The static site over runs and branches: a page a run, and the index that is made of what the pages hold."""
