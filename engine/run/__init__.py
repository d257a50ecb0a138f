"""Thin shells inside a worker: they observe, ask a rule, act, and keep the reason."""
