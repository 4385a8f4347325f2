"""Normalisation over the hidden axis."""
