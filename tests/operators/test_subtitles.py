"""Subtitles: every word once and in order, in cues that can be read; and FFmpeg reads what is written."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.heard import Speech, Word
from operators.speech.subtitles import MAX_LINES, MAX_NS, MIN_NS, Cue, cues_of, srt, vtt

S = 1_000_000_000


def said(text: str, start_s: float, end_s: float) -> Speech:
    return Speech(start_ns=int(start_s * S), end_ns=int(end_s * S), text=text)


def test_a_cue_ends_with_a_sentence_and_at_a_pause() -> None:
    cues = cues_of([said("The train leaves. It is late.", 1, 4), said("and so are we", 9, 10)])
    assert [cue.text for cue in cues] == ["The train leaves.", "It is late.", "and so are we"]
    assert cues[0].start_ns == S
    assert cues[1].end_ns == 4 * S
    assert cues[2] == Cue(9 * S, 10 * S, "and so are we")


def test_srt_and_vtt_are_written_as_they_should_be() -> None:
    cues = [Cue(0, 1_500_000_000, "A <b> & --> c"), Cue(3_661_001_000_000, 3_662_000_000_000, "word " * 12)]
    assert srt(cues) == (
        "1\n00:00:00,000 --> 00:00:01,500\nA <b> & -> c\n\n"
        "2\n01:01:01,001 --> 01:01:02,000\nword word word word word word word word\nword word word word\n\n"
    )
    assert vtt(cues).startswith(
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nA &lt;b&gt; &amp; --&gt; c\n\n01:01:01.001 --> "
    )
    assert (srt([]), vtt([])) == ("", "WEBVTT\n\n")


UTTERANCES = st.lists(
    st.builds(
        lambda words, start, length, timed: Speech(
            start_ns=start * 10**8,
            end_ns=(start + length) * 10**8,
            text=" ".join(words),
            words=tuple(Word(start * 10**8, (start + 1) * 10**8, word) for word in words) if timed else (),
        ),
        st.lists(
            st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1, max_size=60), max_size=20
        ),
        st.integers(0, 3000),
        st.integers(0, 300),
        st.booleans(),
    ),
    max_size=8,
)


@given(utterances=UTTERANCES)
def test_every_word_is_in_one_cue_and_no_cue_is_over_the_next(utterances: Sequence[Speech]) -> None:
    cues = cues_of(utterances)
    words = sorted(word for each in utterances for word in each.text.split())
    assert sorted(word for cue in cues for word in cue.text.split()) == words
    for cue, following in pairwise(cues):
        assert cue.start_ns <= following.start_ns
        assert cue.start_ns < cue.end_ns <= max(following.start_ns, cue.start_ns + 1)
    for cue in cues:
        assert cue.end_ns - cue.start_ns <= max(MAX_NS, MIN_NS) or " " not in cue.text
    for block in srt(cues).strip().split("\n\n"):
        lines = block.split("\n")[2:]
        assert len(lines) <= MAX_LINES or all(" " not in line for line in lines)


@pytest.mark.parametrize("form", [srt, vtt])
def test_ffmpeg_reads_what_is_written(form: object, tmp_path: Path) -> None:
    cues = cues_of([said("The train leaves. It is <late> & full.", 1, 4), said("and so are we", 9, 10)])
    path = tmp_path / ("s.srt" if form is srt else "s.vtt")
    path.write_text(srt(cues) if form is srt else vtt(cues), encoding="utf-8")
    with av.open(str(path)) as read:
        stream = read.streams.subtitles[0]
        found = [
            (packet.pts * stream.time_base, packet.duration * stream.time_base)
            for packet in read.demux(stream)
            if packet.size
        ]
    assert [(float(start), float(start + length)) for start, length in found] == [
        (cue.start_ns // 10**6 / 1000, cue.end_ns // 10**6 / 1000) for cue in cues
    ]
