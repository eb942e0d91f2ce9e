"""Observes a round: token clock, counters, memory, CPU, disk, experts, machine."""
