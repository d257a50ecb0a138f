"""Decides, then runs: workflow, catalogue, plan, joins, worker, node."""
