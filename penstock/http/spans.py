"""The span of an exchange: one for each request that is served, but for those that only look whether we are well."""

import re
from typing import Any

from engine.run import conventions as names
from engine.run.telemetry import Attributes, Span, Telemetry

UNTRACED = frozenset({"/healthz", "/readyz", "/metrics"})  # asked every few seconds, by machines
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT", "TRACE"})
_KIND_OF_PARAMETER = re.compile(r":\w+(?=\})")


class ExchangeSpan:
    """One exchange under way, in the trace that the client names, if it does."""

    def __init__(self, traces: Telemetry, scope: Any) -> None:
        self._scope = scope
        self._span: Span | None = None
        if not traces.enabled or scope["path"] in UNTRACED:
            return
        headers = dict(scope["headers"])
        host, port = (scope.get("server") or ("", 0))[:2]
        told: Attributes = {
            names.METHOD: self._method,
            names.SCHEME: scope["scheme"],
            names.PATH: scope["path"],
            names.SERVER: host or "",
            names.PORT: port or 0,
            names.PROTOCOL: scope["http_version"],
        }
        parent = headers.get(b"traceparent", b"").decode("latin-1")
        self._span = traces.span(names.request(self._method), parent, kind="server", attributes=told)

    @property
    def _method(self) -> str:
        method: str = self._scope["method"]
        return method if method in METHODS else "_OTHER"  # anybody can make one up

    def end(self, status: int) -> None:
        """It is over; with a status of 0 there was no response."""
        if self._span is None:
            return
        route = _KIND_OF_PARAMETER.sub("", self._scope.get("path_template") or "")
        told: dict[str, str | int | float | bool] = {names.STATUS: status} if status else {}
        error = "" if 0 < status < 500 else f"status {status}" if status else "the client left without a response"
        if route:
            told[names.ROUTE] = route
            self._span.rename(names.request(self._method, route))
        if error:
            told[names.ERROR] = str(status) if status else "no_response"
        self._span.end(None, told, error=error)
