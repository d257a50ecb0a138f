"""Names: of spans, attributes and metrics, and where they come from. They are written nowhere else.

NATS is no registered messaging system, so its name is ours; all else under `messaging.`, `http.`, `server.` and `url.`
is as the conventions have it, and what is under `penstock.` is ours alone. A span is named by an operation and the
*template* of what it is about, never by the subject itself: a name with a segment's number in it groups with no other.
Source: OpenTelemetry semantic conventions (messaging, HTTP, resource, GenAI), as of SCHEMA_URL; messaging and GenAI are
in development.
"""

from typing import Final, Literal, NamedTuple

from engine.spec.spending import Call
from streams.subjects import PREFIX

SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.43.0"
SCOPE: Final = "penstock"  # of tracers and meters

Kind = Literal["internal", "server", "client", "producer", "consumer"]
MAX_LINKS: Final = 64  # of one span

# --- where messages go ---------------------------------------------------------------------------------------------

MEDIA: Final = f"{PREFIX}.media.{{stream}}.{{segment}}"
RESULTS: Final = f"{PREFIX}.results.{{stage}}.{{stream}}.{{segment}}"
ANSWERS: Final = f"{PREFIX}.answers.{{job}}.{{stream}}"
INGEST: Final = f"{PREFIX}.ingest.{{stream}}"

# --- spans ---------------------------------------------------------------------------------------------------------

PUBLISH_MEDIA: Final = f"publish {MEDIA}"  # reading a segment from its source, until it is stored
PROCESS: Final = f"process {RESULTS}"  # an output, from its input becoming known until it is stored
WAIT: Final = "wait"
DECODE: Final = "decode"
PUBLISH_RESULT: Final = f"publish {RESULTS}"

ANSWER: Final = "answer"
BRING_MEDIA: Final = "bring media"  # from the job's beginning to the storing of the last segment it looked at
READ_EVIDENCE: Final = "read evidence"
PUBLISH_ANSWER: Final = f"publish {ANSWERS}"

RECEIVE_MEDIA: Final = f"process {INGEST}"  # what one client sends


def compute(capability: str) -> str:
    return f"compute {capability}"


def stage(capability: str) -> str:
    """What a stage did for an answer, from taking what its first output is made from to the end of its last."""
    return f"stage {capability}"


def slowest(capability: str) -> str:
    """The output of a stage that took longest."""
    return f"slowest {capability}"


def request(method: str, route: str = "") -> str:
    """An HTTP request: of a server with its route, of a client without."""
    return f"{method} {route}".rstrip()


# --- attributes ----------------------------------------------------------------------------------------------------

SYSTEM: Final = "messaging.system"
NATS: Final = "nats"
OPERATION: Final = "messaging.operation.name"
OPERATION_TYPE: Final = "messaging.operation.type"
TEMPLATE: Final = "messaging.destination.template"
BODY_BYTES: Final = "messaging.message.body.size"
BATCH_SIZE: Final = "messaging.batch.message_count"

METHOD: Final = "http.request.method"
ROUTE: Final = "http.route"
STATUS: Final = "http.response.status_code"
RESENT: Final = "http.request.resend_count"
SCHEME: Final = "url.scheme"
PATH: Final = "url.path"
URL: Final = "url.full"
SERVER: Final = "server.address"
PORT: Final = "server.port"
PROTOCOL: Final = "network.protocol.version"
ERROR: Final = "error.type"

GEN_AI_OPERATION: Final = "gen_ai.operation.name"
GEN_AI_MODEL: Final = "gen_ai.request.model"
GEN_AI_TOOL: Final = "gen_ai.tool.name"
GEN_AI_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
GEN_AI_OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"

JOB: Final = "penstock.job"
STREAM: Final = "penstock.stream"
SEGMENT: Final = "penstock.segment"
STAGE: Final = "penstock.stage"  # as its workflow calls it
STAGE_ID: Final = "penstock.stage.id"
CAPABILITY: Final = "penstock.capability"
RUNG: Final = "penstock.rung"
WORKER: Final = "penstock.worker"
POOL: Final = "penstock.pool"
BATCH: Final = "penstock.batch"  # its number in its pool
ATTEMPT: Final = "penstock.attempt"
GAP: Final = "penstock.gap.reason"
REASON: Final = "penstock.decision.reason"
DECODE_PATH: Final = "penstock.decode.path"
DECODE_KIND: Final = "penstock.decode.kind"
WAIT_S: Final = "penstock.queue_wait_s"
COMPUTE_S: Final = "penstock.compute_s"
DECODE_S: Final = "penstock.decode_s"
PRICE: Final = "penstock.price"  # in the currency of the machine's owner
NUM_OUTPUTS: Final = "penstock.num_outputs"
NUM_EARLIER: Final = "penstock.num_earlier"  # outputs that were there before the job asked
NUM_BATCHES: Final = "penstock.num_batches"
NUM_GAPS: Final = "penstock.num_gaps"
NUM_SEGMENTS: Final = "penstock.num_segments"
NUM_PIECES: Final = "penstock.num_pieces"
NUM_BYTES: Final = "penstock.num_bytes"
UNLINKED: Final = "penstock.links.left_out"  # of more than MAX_LINKS


def messaging(operation: str, template: str) -> dict[str, str | int | float | bool]:
    """What a span says of the message it publishes or processes."""
    kind = "send" if operation == "publish" else "process"
    return {SYSTEM: NATS, OPERATION: operation, OPERATION_TYPE: kind, TEMPLATE: template}


def called(call: Call) -> tuple[str, dict[str, str | int | float | bool]]:
    """The name of the span of a call, and what it says of it."""
    told: dict[str, str | int | float | bool] = {GEN_AI_OPERATION: call.operation}
    if call.operation == "execute_tool":
        return f"execute_tool {call.of}", {**told, GEN_AI_TOOL: call.of}
    return f"chat {call.of}", {
        **told,
        GEN_AI_MODEL: call.of,
        GEN_AI_INPUT_TOKENS: call.input_tokens,
        GEN_AI_OUTPUT_TOKENS: call.output_tokens,
        PRICE: call.price,
    }


# --- metrics -------------------------------------------------------------------------------------------------------


class Metric(NamedTuple):
    """What is measured. Units are those of UCUM."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    unit: str
    about: str


PROCESS_DURATION = Metric(
    "messaging.process.duration", "gauge", "s", "Time that batches took to be computed"
)  # histogram
WAITING = Metric("penstock.pool.waiting", "gauge", "{item}", "Items that wait for their turn")
PATIENT = Metric("penstock.pool.patient", "gauge", "{item}", "Of those that wait, what is wanted whenever")
AHEAD = Metric("penstock.pool.ahead", "gauge", "{item}", "Items to come, whose media are being decoded")
IN_SERVICE = Metric("penstock.pool.in_service", "gauge", "{item}", "Items in batches that run")
IN_FLIGHT = Metric("penstock.pool.in_flight", "gauge", "{batch}", "Batches that run")
MAX_IN_FLIGHT = Metric("penstock.pool.max_in_flight", "gauge", "{batch}", "Batches that may run at once")
INSTANCES = Metric("penstock.pool.instances", "gauge", "{instance}", "Times the implementation is loaded")
QUEUE_WAIT = Metric("penstock.pool.queue_wait", "gauge", "s", "Mean wait of the last items that were taken")
ARRIVED = Metric("penstock.pool.arrived", "counter", "{item}", "Items handed in")
DONE = Metric("penstock.pool.done", "counter", "{item}", "Items computed")
FAILED = Metric("penstock.pool.failed", "counter", "{item}", "Items whose computing failed")
LATE = Metric("penstock.pool.late", "counter", "{item}", "Items whose time was up before their turn came")
HELD_BACK = Metric(
    "penstock.pool.held_back", "counter", "{item}", "Outputs that were not computed, for their gate was shut"
)
PENDING = Metric("penstock.stream.waiting", "gauge", "{message}", "Messages the server holds for this worker")
TAKEN = Metric("penstock.stream.in_service", "gauge", "{message}", "Messages taken and not acknowledged")
LAG = Metric("penstock.stream.lag", "gauge", "s", "From storing the newest input to storing what was made from it")
STREAM_FRAMES = Metric("penstock.stream.frames.usage", "gauge", "By", "Decoded frames that are kept")
SHELF = Metric("penstock.stream.segments.usage", "gauge", "By", "Compressed segments at hand")
STORED = Metric("penstock.stream.stored", "counter", "{output}", "Outputs stored")
GAPS = Metric("penstock.stream.gaps", "counter", "{gap}", "Gaps stored, by cause")
FRAMES = Metric("penstock.frames.usage", "gauge", "By", "Decoded frames that are kept, of all streams")
MAX_FRAMES = Metric("penstock.frames.limit", "gauge", "By", "What they may take")
DECODED = Metric("penstock.frames.decoded", "counter", "{segment}", "Segments decoded")
DECODE_TIME = Metric("penstock.frames.decode_time", "counter", "s", "Time spent decoding")
ACKS = Metric("penstock.acks.pending", "gauge", "{message}", "Messages sent and not confirmed by the server")
SOURCE_STATE = Metric("penstock.source.state", "gauge", "1", "1 for the state that a stream's source is in")
SOURCE_SINCE = Metric("penstock.source.since", "gauge", "s", "Since when it is in that state, Unix time")

METRICS: Final = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
