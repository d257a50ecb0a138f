"""A clock that goes when it is told to."""


class VirtualClock:
    """Time as the rules are given it: nanoseconds, as the server's Unix time would be."""

    def __init__(self, now_ns: int = 1_000_000_000) -> None:
        self.now_ns = now_ns

    @property
    def now_s(self) -> float:
        return self.now_ns / 1e9

    def advance(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)
