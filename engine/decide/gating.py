"""Whether an output has to be computed at all, by what its inputs are at its own segment. Pure.

A gap there is a gap here. And a stage may have a gate, the input `when`: it is computed where one of the stages that
names found something, and where one of them could not look, for what is not known is no reason to see nothing.
Elsewhere its output is the empty one, at once, with no decode and no call. So cheap stages stand before dear ones, and
what that saves is counted.
"""

from collections.abc import Callable, Mapping

from engine.decide.instructions import Known, StageRule
from engine.spec.operator import Reduce
from engine.spec.workflow import WHEN
from streams.subjects import Key

Inputs = Mapping[str, Mapping[int, Known]]
NameOf = Callable[[str], str]


def gap_above(stage: StageRule, key: Key, inputs: Inputs, name_of: NameOf) -> str | None:
    """Of a gap at the output's own segment, what it says; a range does without what it lacks, and a gate with a gap is
    open."""
    if isinstance(stage.scope, Reduce):
        return None
    read = stage.running.planned.read if stage.is_gated else inputs
    for source in read:
        here = inputs[source].get(key.last)
        if here is not None and here.gap is not None:
            return f"{name_of(source)}: {here.gap.detail}"
    return None


def shut(stage: StageRule, key: Key, inputs: Inputs, name_of: NameOf) -> str:
    """Why an output need not be computed; empty where it has to be."""
    if not stage.is_gated:
        return ""
    gates = stage.running.planned.inputs[WHEN]
    for gate in gates:
        known = inputs[gate].get(key.last)
        if known is None or known.gap is not None or getattr(known.value, "observations", None):
            return ""
    return f"{' and '.join(map(name_of, gates))} found nothing"
