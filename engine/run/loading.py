"""Loading: what a worker is about before it works as fast as it ever will: what is being loaded, and whether all that
it found to do when it began has been.
"""

from collections.abc import Callable

from engine.run.pool import Pool


class Loading:
    """Of one worker. `on_loaded` is called once for all that was loaded together; `on_ready` once, when nothing is left
    to load of what there was to do when the worker began; whether anything failed of it is for the work to say."""

    def __init__(self, on_loaded: Callable[[], None], on_ready: Callable[[], None]) -> None:
        self.is_ready = False
        self._on_loaded = on_loaded
        self._on_ready = on_ready
        self._num = 0
        self._has_loaded = False

    def begin(self) -> None:
        """Something is under way, until `end`."""
        self._num += 1

    def end(self) -> None:
        self._num -= 1
        if self._num:
            return
        if self._has_loaded:
            self._has_loaded = False
            self._on_loaded()
        if not self.is_ready:
            self.is_ready = True
            self._on_ready()

    async def warm_up(self, pool: Pool) -> None:
        """Load the pool's first instance ahead of its work. It was begun."""
        try:
            self._has_loaded |= await pool.warm_up()
        finally:
            self.end()
