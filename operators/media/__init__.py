"""Operators: media."""
