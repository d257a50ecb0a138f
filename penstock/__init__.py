"""Penstock: the public face."""
