"""What was computed lately, by whoever asked first: who asks for the same at the same time waits for it."""

import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

import anyio

T = TypeVar("T")


class Lately(Generic[T]):
    """The last `size` values by key. Of what fails nothing is kept: who waits for it fails with it, and the next one to
    ask computes it anew. For any threads."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._values: OrderedDict[Hashable, Future[T]] = OrderedDict()

    def clear(self) -> None:
        """Forget all of it; who waits for what is being computed still gets that."""
        with self._lock:
            self._values.clear()

    def get(self, key: Hashable, compute: Callable[[], T]) -> T:
        with self._lock:
            known = self._values.get(key)
            if known is None:
                mine = self._values[key] = Future[T]()
                while len(self._values) > self._size:
                    self._values.popitem(last=False)
            else:
                self._values.move_to_end(key)
        if known is not None:
            return known.result()
        try:
            value = compute()
        except BaseException as error:
            with self._lock:
                if self._values.get(key) is mine:
                    del self._values[key]
            mine.set_exception(error)
            raise
        mine.set_result(value)
        return value


class _Begun(Generic[T]):
    """What somebody is computing."""

    def __init__(self) -> None:
        self.over = anyio.Event()
        self.value: list[T] = []  # one, if it came to that
        self.error: Exception | None = None


class LatelyAwaited(Generic[T]):
    """The same for the tasks of one event loop. Where who computes is canceled, the next who waits computes it."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[Hashable, T] = OrderedDict()
        self._begun: dict[Hashable, _Begun[T]] = {}

    def clear(self) -> None:
        """Forget all that was computed."""
        self._values.clear()

    async def get(self, key: Hashable, compute: Callable[[], Awaitable[T]]) -> T:
        while key not in self._values:
            begun = self._begun.get(key)
            if begun is None:
                return await self._computed(key, compute)
            await begun.over.wait()
            if begun.error is not None:
                raise begun.error
            if begun.value:
                return begun.value[0]
        self._values.move_to_end(key)
        return self._values[key]

    async def _computed(self, key: Hashable, compute: Callable[[], Awaitable[T]]) -> T:
        begun = self._begun[key] = _Begun[T]()
        try:
            value = await compute()
        except Exception as error:
            begun.error = error
            raise
        else:
            begun.value.append(value)
            self._values[key] = value
            while len(self._values) > self._size:
                self._values.popitem(last=False)
            return value
        finally:
            del self._begun[key]
            begun.over.set()
