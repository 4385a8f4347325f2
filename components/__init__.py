"""Pure PyTorch building blocks of language models and their registry."""

DISTRIBUTION = "ablate"
