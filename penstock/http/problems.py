"""Problems: errors as RFC 9457 has them, one line each, and never what is inside.

| raised | status |
|---|---|
| `Refusal` | its own |
| `Infeasible` | 422 |
| any other `UserError` | 400 |
| `Transient` | 504 where a wait ran out, else 503 |
| `LinkError` | 503 |
| any other of ours | 500, with its line |
| anything else | 500; the log has it, the answer has not |
"""

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, get_args

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException, InternalServerException, NotFoundException, ValidationException
from litestar.openapi.datastructures import ResponseSpec

from streams.errors import Infeasible, LinkError, PenstockError, Transient, UserError, first_error

log = structlog.get_logger(__name__)

MEDIA_TYPE = "application/problem+json"
TRY_AGAIN_S = 2
MAX_LINE = 1000  # characters


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """What went wrong. `detail` is one line: what, where, what would be right."""

    title: str
    status: int
    detail: str
    type: str = "about:blank"


class Refusal(PenstockError):
    """What HTTP has a status of its own for."""

    def __init__(self, status: HTTPStatus, line: str) -> None:
        super().__init__(line)
        self.status = status


def problem_of(error: BaseException) -> Problem:
    """What the client is told. Logs what is nobody's fault but ours."""
    error = first_error(error)
    match error:
        case Refusal():
            status = error.status
        case Infeasible():
            status = HTTPStatus(422)
        case UserError():
            status = HTTPStatus.BAD_REQUEST
        case Transient() if isinstance(error.__cause__, TimeoutError):
            status = HTTPStatus.GATEWAY_TIMEOUT
        case Transient() | LinkError():
            status = HTTPStatus.SERVICE_UNAVAILABLE
        case HTTPException() if error.status_code < HTTPStatus.INTERNAL_SERVER_ERROR:
            return _problem(HTTPStatus(error.status_code), error.detail)
        case UnicodeDecodeError():
            return _problem(HTTPStatus.BAD_REQUEST, "the body is no UTF-8: send JSON")
        case InternalServerException() if "client disconnected" in error.detail:
            log.debug("http_client_left")
            return _problem(HTTPStatus.BAD_REQUEST, "the body ended before it was complete")
        case PenstockError():
            log.warning("http_failed", error=str(error))
            status = HTTPStatus.INTERNAL_SERVER_ERROR
        case _:
            log.error("http_failed", exc_info=error)
            return _problem(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error: the log of this node has it")
    return _problem(status, str(error))


def on_error(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """The response to a request that failed."""
    problem = problem_of(error)
    if isinstance(error, NotFoundException):
        nothing = f"nothing is at {request.url.path}: see /openapi.json"
        problem = msgspec.structs.replace(problem, detail=_in_one_line(nothing))
    elif isinstance(error, ValidationException):
        problem = msgspec.structs.replace(problem, detail=_in_one_line(_what_is_wrong(request, error)))
    headers = dict(getattr(error, "headers", None) or {})
    if problem.status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(TRY_AGAIN_S)
    return Response(msgspec.json.encode(problem), status_code=problem.status, headers=headers, media_type=MEDIA_TYPE)


def documented(*statuses: HTTPStatus) -> dict[int, ResponseSpec]:
    """These problems, and those that every operation may have, as the OpenAPI document shows them."""
    every = {HTTPStatus.BAD_REQUEST, HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.SERVICE_UNAVAILABLE, *statuses}
    return {
        int(status): ResponseSpec(Problem, generate_examples=False, description=status.phrase, media_type=MEDIA_TYPE)
        for status in sorted(every)
    }


def _problem(status: HTTPStatus, line: str) -> Problem:
    return Problem(title=status.phrase, status=status, detail=_in_one_line(line) or status.phrase)


def _in_one_line(text: str) -> str:
    return " ".join(text.split())[:MAX_LINE]


def _what_is_wrong(request: Request[Any, Any, Any], error: ValidationException) -> str:
    """Each thing that is wrong with parameters or body, and what would be right."""
    fields = request.route_handler.parsed_fn_signature.parameters
    lines = []
    for item in error.extra if isinstance(error.extra, list) else []:
        key, message = str(item.get("key", "")), str(item.get("message", ""))
        field = fields.get(key)
        if item.get("source") == "body":
            keys = f"; its keys are {', '.join(field.annotation.__struct_fields__)}" if field else ""
            lines.append(f"{'body' if field else key}: {'is missing' if message == repr('data') else message}{keys}")
        else:
            choices = [choice for choice in _leaves(field.annotation if field else None) if isinstance(choice, str)]
            name = getattr(field.kwarg_definition, "name", None) if field else None
            lines.append(f"{name or key}: {message}" + (f"; give one of {', '.join(choices)}" if choices else ""))
    return "; ".join(lines) or error.detail


def _leaves(kind: Any) -> Iterator[Any]:
    """What a type is made of, at the bottom: of a choice of words, the words."""
    parts = get_args(kind)
    if not parts:
        yield kind
    for part in parts:
        yield from _leaves(part)
