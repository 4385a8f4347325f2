"""Attention sinks."""
