"""The OpenAPI document: made from the handlers' types, with what types cannot say."""

from dataclasses import dataclass
from typing import Any

from litestar import Litestar
from litestar.openapi import OpenAPIConfig
from litestar.openapi.spec import OpenAPIMediaType, OpenAPIResponse, Operation, Parameter, RequestBody, Schema
from litestar.openapi.spec.enums import OpenAPIType

ANY_BYTES = "application/octet-stream"


@dataclass
class MediaOperation(Operation):
    """Its body is the bytes of a media file."""

    def __post_init__(self) -> None:
        file = Schema(description="the bytes of a container: MP4, Matroska, MPEG-TS, FLV, Ogg, WAV and others")
        self.request_body = RequestBody(content={ANY_BYTES: OpenAPIMediaType(schema=file)}, required=True)


@dataclass
class CallOperation(MediaOperation):
    """Its query is free, but for its own parameters."""

    def __post_init__(self) -> None:
        super().__post_init__()
        free = Schema(type=OpenAPIType.OBJECT, additional_properties=True)
        params = Parameter(
            name="params",
            param_in="query",
            description="the parameters of the capability, each by its own name: see GET /v1/operators",
            schema=free,
            style="form",
            explode=True,
        )
        self.parameters = [*(self.parameters or []), params]


@dataclass
class AnswersOperation(Operation):
    """Its response is a stream of events, or a list."""

    def __post_init__(self) -> None:
        response = (self.responses or {}).get("200")
        if isinstance(response, OpenAPIResponse) and response.content:
            (each,) = response.content.values()
            every = Schema(type=OpenAPIType.ARRAY, items=each.schema)
            response.content["application/json"] = OpenAPIMediaType(schema=every)


def document(handlers: Any, dependencies: Any, version: str) -> dict[str, Any]:
    """The document as it is served."""
    about = "Questions about live and recorded video and audio: streams in, jobs, answers out."
    config = OpenAPIConfig(
        title="Penstock",
        version=version,
        description=about,
        use_handler_docstrings=True,
        operation_id_creator=lambda handler, method, path: str(handler.fn.__name__),
    )
    app = Litestar(list(handlers), dependencies=dependencies, openapi_config=config, logging_config=None, debug=False)
    return app.openapi_schema.to_schema()
