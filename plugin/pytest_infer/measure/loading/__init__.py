"""Loading a model: timed, cold or warm, here or in a process of its own."""
