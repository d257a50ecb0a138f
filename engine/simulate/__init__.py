"""A virtual clock and a toy ledger: the world in which the rules can be driven through any history."""
