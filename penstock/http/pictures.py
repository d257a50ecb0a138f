"""Pictures of streams over HTTP: what one shows at a moment, with what was found in it."""

from http import HTTPStatus
from typing import Annotated, Any

from litestar import Response, get
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, QueryParameter

from penstock.annotating import Annotating, NothingThere
from penstock.http.face import Face
from penstock.http.problems import Refusal, documented

MEDIA_TYPE = "image/jpeg"
MAX_MOMENT = 60  # characters

At = Annotated[
    str,
    QueryParameter(
        name="at", description="-10m, 1:05, 65.4s (of media time), a time of day, or now", max_length=MAX_MOMENT
    ),
]
Plain = Annotated[bool, QueryParameter(name="plain", description="nothing is drawn into it")]
SHOT = ResponseSpec(None, generate_examples=False, description="the picture", media_type=MEDIA_TYPE)


@get(
    "/v1/streams/{stream:str}/snapshot",
    media_type=MEDIA_TYPE,
    responses={**documented(HTTPStatus.NOT_FOUND, HTTPStatus.GATEWAY_TIMEOUT), 200: SHOT},
    summary="A picture of a stream, as JPEG",
)
async def snapshot(
    face: NamedDependency[Face], stream: FromPath[str], at: At = "now", plain: Plain = False
) -> Response[Any]:
    """The last one at or before the moment, with boxes, ways, text and what is said drawn into it."""
    about = Annotating(face.registry, face.ledger, face.catalogue, stream)
    try:
        with face.soon():
            async with face.shots:
                data = await about.snapshot(at, marked=not plain)
    except NothingThere as error:
        raise Refusal(HTTPStatus.NOT_FOUND, str(error)) from error
    return Response(data, media_type=MEDIA_TYPE, headers={"Cache-Control": "no-store"})
