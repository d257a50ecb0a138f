"""The application: the handlers with what they are given, the OpenAPI document, and one kind of error."""

from collections.abc import Collection

import msgspec
from litestar import Litestar, Response, get
from litestar.di import Provide
from litestar.exceptions import HTTPException

from penstock.http.document import document
from penstock.http.face import Face
from penstock.http.problems import on_error
from penstock.http.routes import HANDLERS
from penstock.http.wire import Wire

OPENAPI = "application/vnd.oai.openapi+json"


def application(face: Face, version: str, names: Collection[str], token: str | None) -> Wire:
    """An ASGI application that serves a face, asked of by these names, for those who bear the token if there is one."""

    def given() -> Face:
        return face

    dependencies = {"face": Provide(given, sync_to_thread=False)}
    shown = msgspec.json.encode(document(HANDLERS, dependencies, version))

    @get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response[bytes]:
        return Response(shown, media_type=OPENAPI)

    app = Litestar(
        [*HANDLERS, openapi],
        dependencies=dependencies,
        exception_handlers={Exception: on_error, HTTPException: on_error},
        request_max_body_size=face.limits.max_json_bytes,
        openapi_config=None,
        logging_config=None,
        debug=False,
        pdb_on_exception=False,
    )
    return Wire(app, face.traces, names, token)
