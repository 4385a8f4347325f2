"""Configuration root: models, data, budgets, launchers and the shipped sweeps. YAML, no logic."""

DISTRIBUTION = "ablate"
