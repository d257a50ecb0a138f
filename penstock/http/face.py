"""What every handler of the HTTP face has at hand, and the bounds it keeps."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus

import anyio
import msgspec

from engine.node.endpoints import Services
from engine.node.fleet import Workforce
from engine.node.workers_heard import WorkersHeard
from engine.run.registry import Registry, new_id
from engine.run.telemetry import Telemetry
from engine.spec.catalogue import Catalogue
from engine.spec.operator import Machine
from operators.language.served import ServedState
from penstock.http.problems import Refusal
from streams.errors import LinkError, UserError
from streams.wire.ledger import Ledger

PROOF_S = 1.0
MAX_SHOTS = 2  # pictures that are decoded at once for whoever asks
MAX_UPLOAD_BYTES = "PENSTOCK_MAX_UPLOAD_BYTES"


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a request may take."""

    max_upload_bytes: int = 8 << 30
    max_json_bytes: int = 1 << 20
    max_uploads: int = 16  # at once; each holds a thread
    max_connections: int = 2048  # of which one peer has half at most
    head_s: float = 10.0  # until the head of a request is there, whole
    request_s: float = 20.0  # of what is answered at once
    ready_s: float = 3.0
    stall_s: float = 60.0  # without a byte of a body, or without a byte taken by a client that has fallen behind
    keep_alive_s: float = 15.0  # between signs of life on an event stream


@dataclass(slots=True)
class Face:
    """Made for one server."""

    services: Services
    registry: Registry
    ledger: Ledger
    catalogue: Catalogue
    machine: Machine
    traces: Telemetry
    limits: Limits
    workers: WorkersHeard
    models: Mapping[str, ServedState] = field(default_factory=dict)  # that the node serves, as they stand
    workforce: Workforce | None = None  # None: of no node
    id: str = field(default_factory=lambda: new_id("h"))
    closing: anyio.Event = field(default_factory=anyio.Event)
    num_uploads: int = 0
    shots: anyio.Semaphore = field(default_factory=lambda: anyio.Semaphore(MAX_SHOTS))
    _proof: tuple[float, str] = (-PROOF_S, "")  # when it was last tried whether NATS stores, and why it does not
    _proving: anyio.Lock = field(default_factory=anyio.Lock)

    async def prove(self) -> None:
        """Raises LinkError where NATS stores nothing, as of PROOF_S ago at most, however many ask."""
        async with self._proving:
            if anyio.current_time() > self._proof[0] + PROOF_S:
                try:
                    await self.ledger.prove(self.limits.ready_s)
                    why = ""
                except LinkError as error:
                    why = str(error)
                self._proof = anyio.current_time(), why
        if self._proof[1]:
            raise LinkError(self._proof[1])

    @contextmanager
    def soon(self) -> Iterator[None]:
        """Raises Refusal where what is done in it takes longer than a request may."""
        try:
            with anyio.fail_after(self.limits.request_s):
                yield
        except TimeoutError as error:
            line = f"not answered within {self.limits.request_s:g} s: NATS is away or busy; try again"
            raise Refusal(HTTPStatus.GATEWAY_TIMEOUT, line) from error

    @contextmanager
    def uploading(self) -> Iterator[None]:
        """Raises Refusal where as many uploads are under way as may be."""
        if self.num_uploads >= self.limits.max_uploads:
            line = f"{self.num_uploads} uploads are under way on this node, and no more may be: try again"
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, line)
        self.num_uploads += 1
        try:
            yield
        finally:
            self.num_uploads -= 1


def limits_of_environment() -> Limits:
    """The limits, with what the environment says of them. Raises UserError with what would be right."""
    given = os.environ.get(MAX_UPLOAD_BYTES)
    if given is None:
        return Limits()
    if not (given.isascii() and given.isdecimal() and int(given) > 0):
        raise UserError(f"{MAX_UPLOAD_BYTES}={given!r}: give a number of bytes, such as {Limits().max_upload_bytes}")
    return Limits(max_upload_bytes=int(given))
