"""What is asked and planned, as values."""
