"""What is in a source is not what it is called: scripts and playlists that would have other files read."""

import threading
from pathlib import Path

import clips
import pytest

from streams.errors import UserError
from streams.media.probe import probe
from streams.media.segmenter import segments
from streams.media.sources import read
from streams.records import Segment

SCRIPTS = {
    "ffconcat": "ffconcat version 1.0\nfile neighbour.mp4\n",
    "concat of what is elsewhere": "ffconcat version 1.0\nfile /etc/passwd\n",
    "HLS": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nneighbour.mp4\n#EXT-X-ENDLIST\n",
    "HLS by URL": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
    "SDP": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\n",
    "DASH": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'mediaPresentationDuration="PT10S"><Period><AdaptationSet mimeType="video/mp4"><Representation id="1" '
    'bandwidth="1"><BaseURL>neighbour.mp4</BaseURL></Representation></AdaptationSet></Period></MPD>',
    "ffmetadata": ";FFMETADATA1\ntitle=x\n",
    "text": "penstock\n" * 500,
}


@pytest.mark.parametrize("name", ["x.mp4", "x.ts", "x.m3u8", "x.ffconcat", "x.sdp", "x.txt"])
@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_a_script_is_no_media_whatever_its_name(tmp_path: Path, name: str, script: str) -> None:
    (tmp_path / "neighbour.mp4").write_bytes(clips.STATION.read_bytes())
    path = tmp_path / name
    path.write_text(script)

    def from_source() -> None:
        list(read(str(path), "s", live=False, stop=threading.Event()))

    for look in (lambda: probe(str(path)), lambda: list(segments(str(path), stream="s")), from_source):
        with pytest.raises(UserError, match=r"^[^\n]*cannot be opened as media[^\n]*$"):
            look()


def test_the_neighbour_itself_is_read(tmp_path: Path) -> None:
    path = tmp_path / "neighbour"
    path.write_bytes(clips.STATION.read_bytes())
    assert isinstance(next(iter(segments(str(path), stream="s"))), Segment)
