"""What media may say of themselves."""

from pathlib import Path

import pytest
from media_zoo import make

from streams.errors import UserError
from streams.media import budgets
from streams.media.probe import BAD_MEDIA, inspect, open_decoder, probe, to_decoder
from streams.media.segmenter import segments
from streams.records import Segment


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make(tmp_path / "clip.mp4", video="libx264", audio="aac", seconds=1.0)


@pytest.mark.parametrize(
    ("name", "most", "says"),
    [
        ("MAX_PIXELS", 1000, r"declares pictures of \d+ x \d+: give at most 1000 pixels"),
        ("MAX_RATE_HZ", 8000, r"declares sound of \d+ Hz in \d channels: give at most 8000 Hz"),
        ("MAX_CHANNELS", 0, r"declares sound of \d+ Hz in \d channels"),
        ("MAX_STREAMS", 1, "holds 2 tracks: give media of at most 1"),
    ],
)
def test_what_declares_more_than_there_is_room_for_is_refused(
    clip: Path, monkeypatch: pytest.MonkeyPatch, name: str, most: int, says: str
) -> None:
    assert inspect(str(clip))
    monkeypatch.setattr(budgets, name, most)
    for look in (probe, inspect, lambda url: list(segments(url, stream="s"))):
        with pytest.raises(UserError, match=says):
            look(str(clip))


def test_a_decoder_does_not_take_what_is_larger_than_was_declared(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segment = next(record for record in segments(str(clip), stream="s") if isinstance(record, Segment))
    track = segment.tracks[0]
    packets = [packet for packet in segment.packets if packet.track == 0]

    def pictures() -> int:
        decoder = open_decoder(track)
        sent = [to_decoder(packet, track.time_base) for packet in packets]
        return sum(len(decoder.decode(packet)) for packet in [*sent, None])  # type: ignore[attr-defined]

    assert pictures() > 0
    monkeypatch.setattr(budgets, "MAX_PIXELS", 64)
    with pytest.raises(BAD_MEDIA):
        pictures()
