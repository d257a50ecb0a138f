"""Streams as data: how one is treated, and where nodes get it from, if it is they who do. Pure."""

from typing import Annotated, Literal

import msgspec

from engine.spec.webhook_url import check_webhook
from streams.errors import UserError
from streams.media.addresses import kind_of
from streams.media.references import as_if_filled_in
from streams.records import Record
from streams.subjects import token

MAX_URL = 4096  # characters

Policy = Literal["durable", "live"]


class Keep(Record, frozen=True):
    """For how long, and in how much room, what is stored of one stream is kept; the oldest goes first. What is not
    said, or says more, is as `[retention]` says. Dead letters and gaps go with the results."""

    media_s: Annotated[float, msgspec.Meta(ge=10.0, le=1e9)] | None = None
    media_bytes: Annotated[int, msgspec.Meta(ge=1 << 20, le=1 << 60)] | None = None
    results_s: Annotated[float, msgspec.Meta(ge=10.0, le=1e9)] | None = None
    results_bytes: Annotated[int, msgspec.Meta(ge=1 << 20, le=1 << 60)] | None = None
    answers_s: Annotated[float, msgspec.Meta(ge=10.0, le=1e9)] | None = None
    answers_bytes: Annotated[int, msgspec.Meta(ge=1 << 20, le=1 << 60)] | None = None


class KeepSettings(Keep, frozen=True, forbid_unknown_fields=True):
    """As somebody wants it."""


class StreamSpec(Record, frozen=True):
    """A stream: how it is treated, and where nodes get it from, if it is they who do."""

    name: str
    policy: Policy = "durable"
    segment_s: float = 5.0
    max_lag_s: float = 10.0  # live: what is older when its turn comes becomes a gap
    gop_s: float | None = None  # transcode to pictures that begin anew this often
    url: str = ""  # nodes read it from there; empty: a client brings it. May hold credentials: never shown
    declared_ns: int = 0  # Unix time
    confined: bool = False  # nodes open for it only what they open for others
    keep: Keep = Keep()
    webhook: str = ""  # where it is told what its source is doing. May hold credentials: never shown
    title: str = ""  # what people call it, where its name is a hash: its file's

    @property
    def as_read(self) -> "StreamSpec":
        """What of it concerns those who read it: when the rest changes they go on."""
        return msgspec.structs.replace(self, keep=Keep(), webhook="", title="")


BOUNDS = {"segment_s": (0.2, 60.0), "max_lag_s": (1e-6, 86400.0), "gop_s": (0.1, 60.0)}  # of what a stream may be


def _between(name: str) -> msgspec.Meta:
    """For those who read the schema; who breaks the bounds is told so by `checked`."""
    least, most = BOUNDS[name]
    return msgspec.Meta(extra_json_schema={"minimum": least, "maximum": most})


class StreamSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How somebody wants a stream treated. With a `url`, nodes read it from there."""

    policy: Policy = "live"
    segment_s: Annotated[float, _between("segment_s")] = 5.0
    max_lag_s: Annotated[float, _between("max_lag_s")] = 10.0
    gop_s: Annotated[float, _between("gop_s")] | None = None
    url: str = ""
    keep: KeepSettings = KeepSettings()
    webhook: str = ""  # what its source is doing is POSTed there, as it changes

    def spec(self, name: str) -> StreamSpec:
        """Of a stream of that name."""
        said = {field: getattr(self, field) for field in StreamSettings.__struct_fields__}
        return StreamSpec(name=name, **said | {"keep": Keep(**msgspec.structs.asdict(self.keep))})


def checked(spec: StreamSpec) -> StreamSpec:
    """Raises UserError where a stream cannot be treated so."""
    within_bounds(spec)
    if spec.url:
        kind_of(as_if_filled_in(spec.url))
    if spec.webhook:
        check_webhook(spec.webhook)
    token(spec.name)
    return spec


def within_bounds(spec: StreamSpec) -> None:
    for name, (least, most) in BOUNDS.items():
        value = getattr(spec, name)
        if value is not None and not least <= value <= most:
            raise UserError(f"{name}: {value:g}: give between {least:g} and {most:g} seconds")
    if len(spec.url) > MAX_URL or not spec.url.isprintable():
        raise UserError(f"url: give at most {MAX_URL} printable characters")
