"""Messages that are not acknowledged, and the outputs that are being made for them. Pure.

A message is done when nothing it set off is left to do. Several messages may wait for one output: the one it is made
for, and those that completed it while it was being made.
"""

import msgspec

from engine.decide.instructions import Acknowledge, Compute, Event, GiveGap, Instruction, Output, Redeliver


class Message(msgspec.Struct, eq=False, gc=False):
    """A message, and how much of what it set off is left to do."""

    num_open: int = 0  # reads and outputs
    num_outputs: int = 0
    again: Redeliver | None = None


class _UnderWay(msgspec.Struct, eq=False, gc=False):
    """An output that is being made."""

    work: Compute | GiveGap
    events: list[Event]  # whose messages wait for it; the first is the one it is made for


class Messages:
    """Those of one group, as the shell names them."""

    def __init__(self) -> None:
        self._messages: dict[int, Message] = {}
        self._outputs: dict[Output, _UnderWay] = {}

    def __len__(self) -> int:
        return len(self._messages)

    def get(self, root: int) -> Message | None:
        return self._messages.get(root)

    def come(self, root: int) -> Message:
        """A message that was delivered."""
        message = self._messages[root] = Message()
        return message

    def wait_for(self, output: Output, event: Event, message: Message) -> bool:
        """Have a message wait for an output from now on; whether it is being made already."""
        message.num_open += 1
        message.num_outputs += 1
        under_way = self._outputs.get(output)
        if under_way is not None:
            under_way.events.append(event)
        return under_way is not None

    def make(self, work: Compute | GiveGap) -> None:
        """An output is being made from now on."""
        self._outputs[work.output] = _UnderWay(work, [work.event])

    def is_made(self, work: Compute | GiveGap) -> bool:
        """Whether this is the work that an output is being made by."""
        under_way = self._outputs.get(work.output)
        return under_way is not None and under_way.work is work

    def make_instead(self, work: Compute, gap: GiveGap) -> bool:
        """What was being made will be a gap; False where it is not under way any more."""
        if not self.is_made(work):
            return False
        self._outputs[work.output].work = gap
        return True

    def ended(self, done: Compute | GiveGap) -> list[tuple[Event, Message]]:
        """Nobody makes an output any more: those that waited for it; none where it was not under way."""
        under_way = self._outputs.get(done.output)
        if under_way is None or under_way.work is not done:
            return []
        del self._outputs[done.output]
        ended = [(event, self._messages[event.root]) for event in under_way.events]
        for _, message in ended:
            message.num_open -= 1
            message.num_outputs -= 1
        return ended

    def close(self, root: int, message: Message, out: list[Instruction], why: str) -> None:
        """Say that a message is done, if it is."""
        if message.num_open == 0 and self._messages.get(root) is message:
            del self._messages[root]
            out.append(message.again or Acknowledge(root, why))

    def forget(self, root: int) -> None:
        """A message was handed back: what comes of it now concerns nobody here."""
        self._messages.pop(root, None)
        for output, under_way in list(self._outputs.items()):
            under_way.events = [event for event in under_way.events if event.root != root]
            if not under_way.events:
                del self._outputs[output]

    def validate(self) -> None:
        """The invariants, for tests: what is under way belongs to messages that are, and a message is kept exactly as
        long as something of it is."""
        num_outputs: dict[int, int] = {}
        for (stage_id, key), under_way in self._outputs.items():
            assert under_way.events, f"{stage_id} {key} belongs to no message"
            for event in under_way.events:
                assert event.root in self._messages, f"{stage_id} {key} belongs to a message that is done"
                num_outputs[event.root] = num_outputs.get(event.root, 0) + 1
        for root, message in self._messages.items():
            assert message.num_open > 0, f"message {root} is done and was not acknowledged"
            assert message.num_outputs == num_outputs.get(root, 0), f"message {root} has lost count"
            assert message.num_outputs <= message.num_open, f"message {root} has lost count"
