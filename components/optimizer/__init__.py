"""How weights follow from their gradients."""
