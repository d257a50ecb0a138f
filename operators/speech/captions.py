"""Transcribes by reading the captions that are already in the file: nothing is heard, so nothing is misheard.

Quality 0.98: captions are written or checked by people; the rest is what they shorten. A caption belongs to the segment
in which it appears.

Source: mov_text is 3GPP TS 26.245 timed text (a 16-bit length, the text, style boxes); SubRip, WebVTT and ASS packets
hold what stands between the time lines of their files, ASS with eight fields before the text.
"""

import html
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from engine.spec.operator import Inputs, Machine, Media, Operator, Rung, Settings
from operators.capabilities import TRANSCRIBE
from operators.heard import Speech, Transcript
from streams.errors import Permanent
from streams.records import MediaInfo, Segment, Track


class Captions(Operator):
    """What is said, as captioned in the file."""

    capability = TRANSCRIBE
    name = "captions"
    runs_in = "loop"
    max_batch = 64

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return (Rung("captions", 0.98, Settings()),)

    @classmethod
    def missing(cls, knobs: Any, machine: Machine, media: MediaInfo | None) -> str | None:
        if media is None:
            return "captions can be read only from a source whose tracks are known beforehand"
        codecs = media.codecs.get("subtitle", ())
        if not codecs:
            return "the source has no captions"
        if not any(codec in READERS for codec in codecs):
            return f"the source's captions are {', '.join(codecs)}; text can be read from {', '.join(READERS)}"
        return None

    def process(self, batch: Sequence[Inputs]) -> Sequence[Transcript]:
        return [Transcript(observations=tuple(_captions(inputs))) for inputs in batch]


def _captions(inputs: Inputs) -> Iterator[Speech]:
    media: Media = inputs.here("media")
    segment = media.segment
    track = captions_track(segment, inputs.params.language)
    read = READERS[segment.tracks[track].codec]
    numerator, denominator = segment.tracks[track].time_base
    end_ns = segment.start_ns + segment.duration_ns
    for packet in segment.packets:
        if packet.track != track:
            continue
        begin = packet.pts * numerator * 1_000_000_000 // denominator - segment.origin_ns
        if segment.start_ns <= begin < end_ns and (text := read(packet.data)):
            shown_ns = packet.duration * numerator * 1_000_000_000 // denominator
            yield Speech(start_ns=begin, end_ns=begin + shown_ns if shown_ns > 0 else end_ns, text=text)


def captions_track(segment: Segment, language: str) -> int:
    """Index of the first track of captions in `language` (ISO 639-1), or else of one that names no language.

    Raises Permanent where there is none.
    """
    readable = [(index, track) for index, track in enumerate(segment.tracks) if _is_readable(track)]
    for names in ((*LANGUAGES.get(language, ()), language), ("", "und")):
        for index, track in readable:
            if track.language in names:
                return index
    found = ", ".join(f"{track.codec} {track.language}" for _, track in readable) or "none"
    raise Permanent(f"no captions in {language!r} in segment {segment.index} of {segment.stream} (found: {found})")


def _is_readable(track: Track) -> bool:
    return track.kind == "subtitle" and track.codec in READERS


def mov_text(data: bytes) -> str:
    """The text of a 3GPP timed text sample; empty for one that only clears the screen."""
    length = int.from_bytes(data[:2], "big")
    text = data[2 : 2 + length]
    if text[:2] in (b"\xfe\xff", b"\xff\xfe"):
        return _plain(text.decode("utf-16", "replace"))
    return _plain(text.decode("utf-8", "replace"))


def marked_up(data: bytes) -> str:
    """The text of a SubRip or WebVTT cue without its tags."""
    text = data.decode("utf-8", "replace")
    return _plain(html.unescape(_TAG.sub("", _OVERRIDE.sub("", text))))


def ass(data: bytes) -> str:
    """The text of an ASS event: what follows ReadOrder, Layer, Style, Name, three margins and Effect."""
    fields = data.decode("utf-8", "replace").split(",", 8)
    text = _OVERRIDE.sub("", fields[-1])
    return _plain(re.sub(r"\\[Nnh]", " ", text))


_TAG = re.compile(r"</?[a-zA-Z0-9][^>]*>")
_OVERRIDE = re.compile(r"\{\\[^}]*\}")


def _plain(text: str) -> str:
    return " ".join(text.replace("\0", "").split())


READERS: dict[str, Callable[[bytes], str]] = {
    "mov_text": mov_text,
    "subrip": marked_up,
    "srt": marked_up,
    "text": marked_up,
    "webvtt": marked_up,
    "ass": ass,
    "ssa": ass,
}

# ISO 639-1 -> the ISO 639-2 codes that containers write
LANGUAGES: dict[str, tuple[str, ...]] = {
    "ar": ("ara",),
    "cs": ("ces", "cze"),
    "da": ("dan",),
    "de": ("deu", "ger"),
    "el": ("ell", "gre"),
    "en": ("eng",),
    "es": ("spa",),
    "fi": ("fin",),
    "fr": ("fra", "fre"),
    "he": ("heb",),
    "hi": ("hin",),
    "hu": ("hun",),
    "id": ("ind",),
    "it": ("ita",),
    "ja": ("jpn",),
    "ko": ("kor",),
    "nl": ("nld", "dut"),
    "no": ("nor", "nob", "nno"),
    "pl": ("pol",),
    "pt": ("por",),
    "ro": ("ron", "rum"),
    "ru": ("rus",),
    "sv": ("swe",),
    "th": ("tha",),
    "tr": ("tur",),
    "uk": ("ukr",),
    "vi": ("vie",),
    "zh": ("zho", "chi"),
}
