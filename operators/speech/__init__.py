"""Operators: speech."""
