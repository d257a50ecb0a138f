"""Operators: language."""
