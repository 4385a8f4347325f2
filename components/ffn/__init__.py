"""Channel mixing."""
