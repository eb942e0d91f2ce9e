"""The same counters of other processes: a server's, with all its children."""
