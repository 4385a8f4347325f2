"""Entries of the slot `probe`: capability probes, whose sequences are generated."""
