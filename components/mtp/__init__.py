"""Predicting more than the next token."""
