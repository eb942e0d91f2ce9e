"""Servers: started from a command of the user's, or found running."""
