"""Operators that double a number, in every way an operator can run and fail. They have a module of their own because a
child process must be able to import them."""

import os
import signal
from collections.abc import Sequence
from typing import ClassVar

import msgspec
import toys

from engine.spec.operator import Capability, Device, Inputs, Operator, Port, Rung, Settings
from streams.errors import Permanent, Transient

NUMBERS = Capability("numbers", {"numbers": Port(toys.Number)}, toys.Number)


class Doubled(Operator):
    """Twice its number, but that some numbers make it fail."""

    capability = NUMBERS
    name = "doubled"
    max_batch = 4
    batches: ClassVar[list[list[int]]] = []
    num_loaded: ClassVar[int] = 0

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return [Rung("doubled", 0.5, Settings())]

    def load(self, device: Device) -> None:
        type(self).num_loaded += 1

    def process(self, batch: Sequence[Inputs]) -> Sequence[msgspec.Struct]:
        numbers = [item.here("numbers").value for item in batch]
        type(self).batches.append(numbers)
        for number in numbers:
            self.fail(number)
        return [toys.Number(value=2 * number) for number in numbers]

    def fail(self, number: int) -> None:
        match number:
            case 13:
                raise Permanent("unlucky number")
            case 17:
                raise Transient("not in the mood")
            case 19:
                raise ValueError("never thought of 19")
            case 23:
                raise MemoryError("23 is too large")
            case 29:
                raise FileNotFoundError(2, "No such file", "model.bin")


class InLoop(Doubled):
    runs_in = "loop"


class InThread(Doubled):
    runs_in = "thread"


class InProcess(Doubled):
    runs_in = "process"

    def fail(self, number: int) -> None:
        if number == 31:
            os.kill(os.getpid(), signal.SIGKILL)
        super().fail(number)


class StuckProcess(Doubled):
    runs_in = "process"
    timeout_s = 5.0  # a child process takes a while to start

    def fail(self, number: int) -> None:
        if number == 7:
            signal.pause()
