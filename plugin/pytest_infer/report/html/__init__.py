"""The HTML report: one file that opens offline, rendered from stored runs."""
