"""Pieces of the demo's clip."""

from pathlib import Path

import av

EXAMPLES = Path(__file__).parent.parent / "examples"
STATION = EXAMPLES / "station.mp4"


def first_seconds(path: Path, seconds: float) -> Path:
    """The start of the demo's clip, its packets as they are, at `path`."""
    with av.open(str(STATION)) as source, av.open(str(path), "w") as copy:
        copies = {stream.index: copy.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.pts is not None and packet.time_base is not None and packet.pts * packet.time_base < seconds:
                packet.stream = copies[packet.stream_index]
                copy.mux(packet)
    return path
