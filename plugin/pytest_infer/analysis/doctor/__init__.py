"""Whether a model runs on a machine, and what spoils measurements on it."""
