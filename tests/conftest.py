"""Puts this folder on the import path, for `study_views`."""
