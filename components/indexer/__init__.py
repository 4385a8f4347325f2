"""Choosing compressed entries."""
