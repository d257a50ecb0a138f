"""Operators: control."""
