"""A job that is sound, and entries that are not, as any NATS client can write them."""

from typing import Any

import msgspec
import toys

from engine.spec.catalogue import Catalogue
from engine.spec.jobs import JobSpec, Span, spans_of
from engine.spec.operator import Machine
from engine.spec.plan import Plan, make_plan
from engine.spec.workflow import Stage, Workflow

CATALOGUE = Catalogue(toys.ALL)
DEEP = 100_000
EACH = Workflow(
    name="each",
    stages={
        "read": Stage(capability="toy_read", inputs={"media": "media"}),
        "add": Stage(capability="toy_add", inputs={"numbers": "read"}),
    },
)


def plan_of_two() -> Plan:
    return make_plan(EACH, CATALOGUE, Machine(num_cores=2))


def sound(id: str = "good", stream: str = "s", last: int | None = None, **more: Any) -> JobSpec:
    """A job of two stages, the second of which reads the first."""
    plan, asked = plan_of_two(), Span(first=0, last=last)
    return JobSpec(id=id, stream=stream, plan=plan, spans=spans_of(plan, asked), asked=asked, **more)


def changed(id: str, change: Any) -> bytes:
    """The entry of a sound job of that id after `change` was made to it."""
    entry = msgspec.json.decode(msgspec.json.encode(sound(id)))
    change(entry)
    return msgspec.json.encode(entry)


def no_spans(entry: Any) -> None:
    entry["spans"] = {}


def cycle(entry: Any) -> None:
    first, second = entry["plan"]["stages"]
    first["inputs"] = {"media": [second["id"]]}


def reads_itself(entry: Any) -> None:
    stage, _ = entry["plan"]["stages"]
    stage["inputs"] = {"media": [stage["id"]]}


def nobody_answers(entry: Any) -> None:
    entry["plan"]["answers"] = ["nobody"]


def no_token(entry: Any) -> None:
    entry["stream"] = "a b.*>"


def stage_no_token(entry: Any) -> None:
    entry["plan"]["stages"][0]["id"] = "a.*.>"


def other_name(entry: Any) -> None:
    entry["id"] = "somebody-else"


def backwards(entry: Any) -> None:
    for spans in entry["spans"].values():
        spans[:] = [{"first": 7, "last": 3}]


def endless_halo(entry: Any) -> None:
    entry["plan"]["stages"][0]["scope"] = {"type": "map", "before": 10**12, "after": 10**12}


def params_are_a_list(entry: Any) -> None:
    entry["plan"]["stages"][0]["params"] = [1]


BAD_JOBS: dict[str, bytes] = {
    "a-round-beyond-64-bits": changed("a-round-beyond-64-bits", lambda entry: entry.update(rounds={"x": 10**30})),
    "submitted-when-no-clock-shows": changed(
        "submitted-when-no-clock-shows", lambda entry: entry.update(submitted_ns=10**21)
    ),
    "a-segment-beyond-all": changed("a-segment-beyond-all", lambda entry: entry.update(asked={"first": 10**12})),
    "utf8": b'{"id":"utf8","stream":"\xff\xfe","plan":{},"spans":{}}',
    "deep": b'{"id":"deep","x":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "huge": b'{"id":"huge","submitted_ns":' + b"9" * 5000 + b"}",
    "list": b"[]",
    "nothing": b"",
    **{
        change.__name__: changed(change.__name__, change)
        for change in (
            no_spans,
            cycle,
            reads_itself,
            nobody_answers,
            no_token,
            stage_no_token,
            other_name,
            backwards,
            endless_halo,
            params_are_a_list,
        )
    },
}

BAD_STREAMS: dict[str, bytes] = {
    "named": b'{"name":"a b.*>"}',
    "utf8": b'{"name":"\xff"}',
    "deep": b"[" * DEEP,
    "policy": b'{"name":"policy","policy":"whatever"}',
    "no_source": b'{"name":"no_source","url":"gopher://there/it/is"}',
    "nul": b'{"name":"nul","url":"/a\\u0000b"}',
    "long": b'{"name":"long","segment_s":1e300}',
    "with.dots": b'{"name":"with.dots"}',
}
