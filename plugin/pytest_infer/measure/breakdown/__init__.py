"""Takes the steps of a prompt apart: hooks on modules and an engine's spans, in rounds of their own."""
