"""What the running graph computes twice for no reason."""
