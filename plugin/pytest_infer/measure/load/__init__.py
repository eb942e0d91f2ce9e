"""Load tests: what is asked of a server, who sends it, and what it tells of each request."""
