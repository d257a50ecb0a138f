"""Loading: what a worker is about before it works as fast as it ever will: what is being loaded, and whether all that
it found to do when it began has been.
"""

from collections.abc import Callable

from engine.run.pool import Pool


class Loading:
    """Of one worker. `on_loaded` is called once for all that was loaded together; `on_ready` when nothing is left to
    load of what there was to do when the worker began, if that was anything. What failed of it is for the work to
    say."""

    def __init__(self, on_loaded: Callable[[], None], on_ready: Callable[[], None]) -> None:
        self.is_ready = False
        self._on_loaded = on_loaded
        self._on_ready = on_ready
        self._is_beginning = True
        self._num = self._num_first = 0
        self._has_loaded = self._has_ever_loaded = False

    def begin(self, *, is_first: bool | None = None) -> bool:
        """Something is under way, until `end`. Whether it is part of what there was to do when the worker began, as
        what it belongs to is (`is_first`)."""
        is_first = self._is_beginning if is_first is None else is_first
        self._num += 1
        self._num_first += is_first
        return is_first

    def end(self, *, is_first: bool) -> None:
        self._num -= 1
        self._num_first -= is_first
        if self._has_loaded and not self._num:
            self._has_loaded = False
            self._on_loaded()
        self._look()

    def begun(self) -> None:
        """What there is to do is known: what comes from now on is no part of it."""
        self._is_beginning = False
        self._look()

    async def warm_up(self, pool: Pool, is_first: bool) -> None:
        """Load the pool's first instance ahead of its work. It was begun."""
        try:
            has_loaded = await pool.warm_up()
            self._has_loaded |= has_loaded
            self._has_ever_loaded |= has_loaded
        finally:
            self.end(is_first=is_first)

    def _look(self) -> None:
        if not (self.is_ready or self._is_beginning or self._num_first):
            self.is_ready = True
            if self._has_ever_loaded:
                self._on_ready()
