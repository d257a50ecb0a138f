"""The gate: what others have this node open is held against what its user allows (`engine.spec.access`).

Who declares a stream is told at once where the node would not read it; and what is read is judged again at every
connection, where it counts. A stream of the node's own configuration is its user's, and so is all that stands in the
registry of an embedded server, but for what came by HTTP, which is marked `confined` there.
"""

import os
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from engine.spec.access import HOW, Access
from engine.spec.stream import StreamSpec
from engine.spec.webhook_url import check_webhook
from streams.errors import UserError
from streams.media.addresses import Place, place_of, public_url
from streams.media.egress import egress
from streams.media.references import refers
from streams.media.sources import Through


@dataclass(slots=True)
class Gate:
    """Made for one node. `own`: the URLs of its configuration, by stream."""

    access: Access = field(default_factory=Access)
    trusts_registry: bool = True
    own: Mapping[str, str] = field(default_factory=dict)
    _proxy: str = ""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Serve the connections that are made for others."""
        async with egress(self.access.allows) as proxy:
            self._proxy = proxy
            for name in ("no_proxy", "NO_PROXY"):  # FFmpeg would go round the proxy to what is named there
                os.environ.pop(name, None)
            yield

    @property
    def proxy(self) -> str:
        """Through which what others ask for goes. Raises UserError where the gate is not open."""
        if not self._proxy:
            raise UserError("this node makes no connections for others")
        return self._proxy

    def of(self, spec: StreamSpec) -> Through | None:
        """How the source of a stream is to be reached; None: as it is. Raises UserError where it is not read here."""
        if (self.trusts_registry and not spec.confined) or self.own.get(spec.name) == spec.url:
            return None
        self.check(spec.url)
        return self.through

    def check(self, url: str) -> None:
        """Raises UserError where this node does not read a URL for others. One answer for what is not there and for
        what may not be read: a client is not to find out which."""
        scheme, separator, rest = url.partition("://")
        if refers(url):
            raise UserError("url: ${...} is for sources of the node's own configuration: give the URL itself")
        if url == "-":
            raise UserError("url: - is the standard input of whoever sends: give a URL, or send the media")
        if url.startswith("device:"):
            if not self.access.devices:
                raise UserError(f"url: devices of the node are not open to clients: {HOW}")
        elif not separator or scheme.lower() == "file":
            self._check_path(unquote(rest.removeprefix("localhost")) if separator else url)
        else:
            self._check_place(place_of(url))

    def check_webhook(self, url: str) -> None:
        """Raises UserError where this node does not send answers of others."""
        check_webhook(url)
        host = urlsplit(url).hostname or ""
        if _is_address(host) and not self.access.allows(host):
            raise UserError(f"webhook: {host} is not open to clients: {HOW}")

    def through(self, place: Place) -> Place:
        """How a source is to be reached for others, at this moment. Raises UserError where it may not be. In the thread
        that reads."""
        if place.kind in ("file", "folder"):
            for path in place.paths:
                self._check_path(str(path))
            return place
        if place.kind in ("stdin", "device"):
            self.check("-" if place.kind == "stdin" else place.name)
            return place
        self._check_place(place)
        if place.kind in ("http", "hls"):
            return replace(place, options={**place.options, "http_proxy": self.proxy})
        return place if place.is_passive else self._pinned(place)

    def _check_path(self, path: str) -> None:
        try:
            real = Path(path).resolve(strict=True)
            folders = [Path(folder).resolve() for folder in self.access.paths]
            if any(real.is_relative_to(folder) for folder in folders):
                return
        except (OSError, ValueError, RuntimeError):
            pass
        raise UserError(f"url: there is no file {path} that is open to clients: push it, or {HOW}")

    def _check_place(self, place: Place) -> None:
        if place.is_passive and not self.access.listen:
            raise UserError(f"{place.name}: clients may not have this node listen: {HOW}")
        host = urlsplit(place.source).hostname or ""
        if not place.is_passive and _is_address(host) and not self.access.allows(host):
            raise UserError(f"{place.name}: that address is not open to clients: {HOW}")

    def _pinned(self, place: Place) -> Place:
        """With the address in place of the name that leads to it now: nobody asks again where that leads."""
        parts = urlsplit(place.source)
        with suppress(OSError, UnicodeError):
            for *_, where in socket.getaddrinfo(parts.hostname, parts.port or 0, type=socket.SOCK_STREAM):
                address = str(where[0])
                if self.access.allows(address):
                    host = f"[{address}]" if ":" in address else address
                    user = parts.netloc.rpartition("@")
                    netloc = f"{user[0]}{user[1]}{host}" + (f":{parts.port}" if parts.port else "")
                    return replace(place, source=parts._replace(netloc=netloc).geturl())
        raise UserError(f"{public_url(place.source)}: cannot be reached from this node, or may not be")


def _is_address(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError, ValueError):
            socket.inet_pton(family, host.partition("%")[0])
            return True
    return False
