"""The timeline of a profile round, sampled by a helper process."""
