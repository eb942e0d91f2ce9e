"""Where the time of a step goes: what the roles took of it, held against the machine's limit."""
