"""What the test of an operator needs (see operators.testing)."""

from operators.testing import ContractError, check_contract, film, gap, inputs_of, loaded, run, segments_of

__all__ = ["ContractError", "check_contract", "film", "gap", "inputs_of", "loaded", "run", "segments_of"]
