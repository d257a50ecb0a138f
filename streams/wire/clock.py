"""The server's clock, as far as this process knows it."""

import time


class ServerClock:
    """`offset_ns` is what the server's clock is ahead of this one's."""

    def __init__(self) -> None:
        self.offset_ns = 0

    def now_ns(self) -> int:
        """The server's Unix time."""
        return time.time_ns() + self.offset_ns
