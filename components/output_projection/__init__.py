"""From attention heads back to the hidden size."""
