"""Rendering for people: it shows what records and stored runs say, and computes nothing."""
