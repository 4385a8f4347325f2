"""Other libraries' models and ours, both ways."""
