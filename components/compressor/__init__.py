"""Compressors of keys and values."""
