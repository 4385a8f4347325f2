"""What layers read from and write to."""
