"""Records as hypothesis samples them, and one of each."""

import msgspec
from hypothesis import strategies as st

from streams.records import EndOfStream, Gap, Measured, Packet, Reply, Result, Segment, Support, Track, encode
from streams.subjects import MAX_INDEX

INT64 = st.integers(-(2**63), 2**63 - 1)
COUNTS = st.integers(0, MAX_INDEX)
WORDS = st.text(max_size=20)
PAIRS = st.tuples(COUNTS, COUNTS)
TRACKS = st.builds(
    Track,
    kind=st.sampled_from(["video", "audio", "subtitle"]),
    codec=WORDS,
    time_base=PAIRS,
    extradata=st.binary(max_size=20),
    width=COUNTS,
    frame_rate=PAIRS,
    sample_rate=COUNTS,
    layout=WORDS,
    language=WORDS,
)
PACKETS = st.builds(
    Packet, COUNTS, INT64, INT64, INT64, st.booleans(), st.binary(max_size=20), st.one_of(st.just(-1), COUNTS)
)
SEGMENTS = st.builds(
    Segment,
    stream=WORDS,
    index=COUNTS,
    start_ns=INT64,
    duration_ns=INT64,
    origin_ns=INT64,
    tracks=st.lists(TRACKS, max_size=2).map(tuple),
    packets=st.lists(PACKETS, max_size=4).map(tuple),
    flaws=st.lists(WORDS, max_size=2).map(tuple),
)
ENDS = st.builds(EndOfStream, stream=WORDS, num_segments=COUNTS, duration_ns=INT64)
GAPS = st.builds(
    Gap,
    stage=WORDS,
    stream=WORDS,
    first=COUNTS,
    last=COUNTS,
    cause=st.sampled_from(["late", "dropped", "dead_lettered", "source_lost", "upstream"]),
    detail=WORDS,
)
REPLIES = st.builds(
    Reply,
    question=WORDS,
    answer=WORDS,
    confidence=st.floats(0, 1),
    evidence=st.lists(st.builds(Support, kind=WORDS, start_ns=INT64, end_ns=INT64, text=WORDS), max_size=2).map(tuple),
)
RESULTS = st.builds(
    Result,
    stage=WORDS,
    stream=WORDS,
    first=COUNTS,
    last=COUNTS,
    output=REPLIES.map(lambda reply: msgspec.Raw(encode(reply))),
    implementation=WORDS,
    measured=st.one_of(st.none(), st.builds(Measured, compute_s=st.floats(0, 1e6), batch_size=COUNTS, worker=WORDS)),
)
MEDIA = st.one_of(SEGMENTS, ENDS, GAPS)
RESULT_MESSAGES = st.one_of(RESULTS, GAPS)

SEGMENT = Segment(
    stream="s",
    index=3,
    start_ns=3 * 10**9,
    duration_ns=10**9,
    tracks=(
        Track(kind="video", codec="h264", time_base=(1, 90000)),
        Track(kind="audio", codec="aac", time_base=(1, 48000)),
    ),
    packets=(Packet(0, 0, 0, 3000, True, b"\x00\x01"), Packet(1, 5, 4, 1024, True, b"abc", 17)),
    flaws=("a packet is missing",),
)
RESULT = Result(
    stage="id",
    stream="s",
    first=0,
    last=4,
    output=msgspec.Raw(encode(Reply(question="q", answer="a", confidence=0.5))),
    implementation="x",
    measured=Measured(compute_s=0.25, batch_size=2),
)
