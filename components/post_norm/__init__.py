"""Normalisation of what branches give."""
