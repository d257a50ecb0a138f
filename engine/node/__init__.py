"""What a node does for its clients."""
