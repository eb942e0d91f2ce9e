"""One run: the summary at its end, and the live line while it goes on."""
