"""A harness for the authors of operators: plain values in, outputs out, over a whole toy stream; and a check of the
contract. It needs no server.

    from penstock.testing import check_contract, film, gap, run, segments_of

    run(Loudness, {"media": "talk.mp4"})                            one output for each segment
    run(Count, {"numbers": [Number(value=1), gap("lost"), Number(value=3)]})
    run(Total, {"numbers": [[...], [...]]}, params={"add": 1})      a port with many sources: a list of lists
    check_contract(Loudness, {"media": film(sound=samples)})        raises ContractError
"""

from operators.testing.calling import ContractError, inputs_of, loaded, run
from operators.testing.contract import check_contract
from operators.testing.film import film, segments_of
from operators.testing.toy_stream import gap

__all__ = ["ContractError", "check_contract", "film", "gap", "inputs_of", "loaded", "run", "segments_of"]
