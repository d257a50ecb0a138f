"""Drafts: what of an answer is shown while it is being written."""

from engine.spec.operator import Emit
from operators.language.structured import Growing


class Draft:
    """Of one output, by a field of what a model says, however often a model begins anew, and whichever of them does."""

    def __init__(self, emit: Emit, field: str) -> None:
        self._emit = emit
        self._field = field
        self._growing = Growing(field)
        self._is_shown = self._is_anew = False

    def begin(self) -> None:
        """What was shown so far does not hold, once there is more to be shown."""
        self._growing = Growing(self._field)
        self._is_anew = self._is_shown

    def add(self, piece: str) -> None:
        """More of the JSON that is coming."""
        if grown := self._growing.add(piece):
            self.show(grown)

    def show(self, text: str) -> None:
        self._emit(text, anew=self._is_anew)
        self._is_shown, self._is_anew = True, False


def unseen() -> Draft:
    """For what nobody listens to."""
    return Draft(lambda text, *, anew=False: None, "")
