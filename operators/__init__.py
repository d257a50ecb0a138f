"""Implementations of capabilities, one a file, by modality. They know nothing of NATS."""
