"""Expiry: what of a stream's records goes, where it is kept for less long, or takes less room, than the rest. Pure.

A tally counts records in the order of storing, in blocks of BLOCK_NS or BLOCK_BYTES, whichever is full first, so that
it stays small however much is stored. The oldest blocks go: those whose newest record is older than the age, and as
many as it takes for the rest to fit. The newest block stays, whatever its size: something is always left to work on.
"""

from collections import deque

import msgspec

BLOCK_NS = 10_000_000_000
BLOCK_BYTES = 1 << 20


class _Block(msgspec.Struct):
    first_ns: int
    last_ns: int
    last_seq: int
    num_bytes: int


class Tally:
    """The records under one pattern of subjects."""

    def __init__(self) -> None:
        self.last_seq = 0
        self.num_bytes = 0
        self._blocks: deque[_Block] = deque()

    def note(self, seq: int, stored_ns: int, num_bytes: int) -> None:
        """One more was stored; of those noted before it changes nothing."""
        if seq <= self.last_seq:
            return
        self.last_seq = seq
        self.num_bytes += num_bytes
        block = self._blocks[-1] if self._blocks else None
        if block is None or stored_ns - block.first_ns >= BLOCK_NS or block.num_bytes >= BLOCK_BYTES:
            self._blocks.append(_Block(stored_ns, stored_ns, seq, num_bytes))
        else:
            block.last_ns, block.last_seq = max(block.last_ns, stored_ns), seq
            block.num_bytes += num_bytes

    def cut(self, now_ns: int, max_age_s: float | None, max_bytes: int | None) -> int:
        """The sequence below which records go, and are not counted any more; 0 where none does."""
        gone = 0
        while self._blocks and self._is_over(now_ns, max_age_s, max_bytes):
            block = self._blocks.popleft()
            self.num_bytes -= block.num_bytes
            gone = block.last_seq + 1
        return gone

    def _is_over(self, now_ns: int, max_age_s: float | None, max_bytes: int | None) -> bool:
        oldest = self._blocks[0]
        if max_age_s is not None and oldest.last_ns < now_ns - int(max_age_s * 1e9):
            return True
        return max_bytes is not None and self.num_bytes > max_bytes and len(self._blocks) > 1
