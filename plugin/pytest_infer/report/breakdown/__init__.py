"""Where the time of a step goes, in words."""
