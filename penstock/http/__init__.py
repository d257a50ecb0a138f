"""The HTTP face: jobs, answers, streams, uploads and operators for whoever speaks HTTP rather than NATS."""

from penstock.http.face import Limits
from penstock.http.server import serve_http

__all__ = ["Limits", "serve_http"]
