"""Transcription: regions that neither lose nor double speech, and the implementations that hear or read it."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from media_zoo import make

from engine.spec.operator import Device, Inputs, Machine, Settings
from operators.capabilities import TranscribeParams
from operators.speech import captions, pocketsphinx_words
from operators.speech.captions import Captions
from operators.speech.pocketsphinx_words import PocketSphinxWords
from operators.speech.regions import (
    HOP,
    MAX_UTTERANCE_S,
    RATE,
    SEARCH_S,
    Clip,
    moved_boundary,
    region,
    region_of,
    utterances,
)
from operators.speech.whisper import Whisper
from penstock.testing import gap, inputs_of, run, segments_of
from streams.errors import Permanent
from streams.records import MediaInfo, Packet, Segment, Track

EXAMPLES = Path(__file__).parents[2] / "examples"


def station(max_segments: int) -> list[Segment]:
    return segments_of(EXAMPLES / "station.mp4", max_segments=max_segments)


def mute() -> list[Segment]:
    """Two seconds without a track."""
    return [Segment(stream="mute", index=0, start_ns=0, duration_ns=2 * 10**9)]


def regions_of(media: Sequence[Any]) -> list[Clip]:
    """The region of each segment that is there."""
    asked = inputs_of(PocketSphinxWords, {"media": media})
    return [region_of(each) for each in asked if isinstance(each, Inputs)]


def captions_of(*segments: Segment) -> list[Any]:
    return [speech for each in run(Captions, {"media": segments}) for speech in each.observations]


# --- regions ---------------------------------------------------------------------------------------------


def noise(seed: int, num_samples: int, level: float = 3000.0) -> np.ndarray[Any, np.dtype[np.int16]]:
    return np.random.default_rng(seed).normal(0, level, num_samples).clip(-32768, 32767).astype(np.int16)


def talk(seed: int, duration_s: float) -> np.ndarray[Any, np.dtype[np.int16]]:
    """Noise with the rhythm of syllables: four swells a second."""
    num_samples = round(duration_s * RATE)
    swell = np.sin(np.arange(num_samples) * (4 * np.pi / RATE)) ** 2
    return (noise(seed, num_samples) * swell).astype(np.int16)


def silence(duration_s: float) -> np.ndarray[Any, np.dtype[np.int16]]:
    return np.zeros(round(duration_s * RATE), np.int16)


def cut_at(samples: np.ndarray[Any, np.dtype[np.int16]], lengths: Sequence[int], first: int) -> list[Clip]:
    starts = np.cumsum([0, *lengths])
    return [
        Clip(first + int(start), samples[start : start + size]) for start, size in zip(starts, lengths, strict=False)
    ]


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40_000), min_size=1, max_size=7),
    first=st.integers(0, 10**9),
    seed=st.integers(0, 99),
)
def test_regions_tile_the_audio_however_short_the_segments(lengths: list[int], first: int, seed: int) -> None:
    samples = noise(seed, sum(lengths), level=800)
    clips = [None, *cut_at(samples, lengths, first), None]
    regions = [region(*clips[at : at + 3]) for at in range(len(lengths))]  # type: ignore[arg-type]
    assert regions[0].first == first
    assert np.array_equal(np.concatenate([each.samples for each in regions]), samples)
    for left, right in itertools.pairwise(regions):
        assert left.end == right.first


@settings(deadline=None)
@given(left=st.integers(1, 60_000), right=st.integers(1, 60_000), seed=st.integers(0, 99))
def test_a_boundary_moves_no_further_than_the_search_and_half_a_segment(left: int, right: int, seed: int) -> None:
    before, after = cut_at(noise(seed, left + right), (left, right), 777)
    moved = moved_boundary(before, after) - after.first
    assert -min(left / 2, SEARCH_S * RATE) <= moved <= min(right / 2, SEARCH_S * RATE)


@pytest.mark.parametrize("pause_at_s", [-1.2, -0.3, 0.4, 1.1])
def test_a_boundary_moves_into_the_pause(pause_at_s: float) -> None:
    samples = noise(1, 10 * RATE)
    middle = round((5 + pause_at_s) * RATE)
    samples[middle - RATE // 10 : middle + RATE // 10] = 0
    before, after = cut_at(samples, (5 * RATE, 5 * RATE), 0)
    assert abs(moved_boundary(before, after) - middle) <= RATE // 10


def test_a_boundary_stays_where_all_is_silent() -> None:
    before, after = cut_at(silence(10), (5 * RATE + 7, 5 * RATE - 7), 0)
    assert moved_boundary(before, after) == after.first


def test_a_boundary_stays_at_a_missing_or_detached_neighbour() -> None:
    before, here, after = cut_at(noise(3, 15 * RATE), (5 * RATE,) * 3, 0)
    alone = region(None, here, None)
    assert (alone.first, alone.end) == (here.first, here.end)
    detached = region(Clip(before.first - 1, before.samples), here, Clip(after.first + 1, after.samples))
    assert (detached.first, detached.end) == (here.first, here.end)


def test_utterances_are_found_between_pauses() -> None:
    hiss = noise(9, 8 * RATE, level=20)
    heard = np.concatenate((silence(0.5), talk(1, 2.0), silence(1.0), talk(2, 1.5), silence(3.0))) + hiss
    first, second = utterances(Clip(1000, heard))
    for clip, begin_s, end_s in ((first, 0.5, 2.5), (second, 3.5, 5.0)):
        assert begin_s - 0.2 <= (clip.first - 1000) / RATE <= begin_s + 0.1
        assert end_s - 0.1 <= (clip.end - 1000) / RATE <= end_s + 0.2


@pytest.mark.parametrize("level", [0, 5, 60])
def test_silence_and_even_noise_hold_no_utterance(level: float) -> None:
    assert utterances(Clip(0, noise(4, 5 * RATE, level))) == ()


def test_nothing_is_found_in_nothing() -> None:
    assert utterances(Clip(0, np.zeros(0, np.int16))) == ()
    assert utterances(Clip(0, np.zeros(HOP - 1, np.int16))) == ()


@settings(deadline=None, max_examples=30)
@given(parts=st.lists(st.tuples(st.booleans(), st.floats(0.05, 9.0)), min_size=1, max_size=12), seed=st.integers(0, 9))
def test_utterances_are_in_order_and_inside_the_region(parts: list[tuple[bool, float]], seed: int) -> None:
    samples = np.concatenate([talk(seed, size) if spoken else silence(size) for spoken, size in parts])
    clip = Clip(12_345, samples)
    edges = [clip.first, *(edge for each in utterances(clip) for edge in (each.first, each.end)), clip.end]
    assert edges == sorted(edges)
    assert all(len(each.samples) <= (MAX_UTTERANCE_S + 0.3) * RATE for each in utterances(clip))


def test_regions_of_real_segments_tile_the_soundtrack() -> None:
    media: list[Any] = [*station(4)]
    regions = regions_of(media)[:3]
    assert regions[0].first == 0
    assert all(left.end == right.first for left, right in itertools.pairwise(regions))
    media[1] = gap("lost")
    assert regions_of(media)[0].end == -(-media[0].duration_ns * RATE // 10**9)


def test_a_segment_without_sound_has_a_silent_region() -> None:
    (heard,) = regions_of(mute())
    assert len(heard.samples) == 2 * RATE
    assert not heard.samples.any()


# --- PocketSphinx ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pocketsphinx() -> PocketSphinxWords:
    operator = PocketSphinxWords(Settings())
    operator.load(Device())
    return operator


def test_pocketsphinx_hears_the_station(pocketsphinx: PocketSphinxWords) -> None:
    transcripts = run(pocketsphinx, {"media": station(3)})[:2]
    heard = [word for each in transcripts for speech in each.observations for word in speech.words]
    until_s = heard[-1].end_ns / 1e9
    truth = json.loads((EXAMPLES / "station.json").read_text())["transcript"]
    expected = [
        word.strip(".,").lower() for said in truth if said["end_s"] < until_s + 0.5 for word in said["text"].split()
    ]
    found = [word.text for word in heard]
    assert len(expected) >= 8
    assert len(set(expected) & set(found)) >= 0.8 * len(set(expected))
    assert abs(len(found) - len(expected)) <= 2  # nothing lost or doubled at the boundary
    assert truth[0]["start_s"] - 0.3 <= heard[0].start_ns / 1e9 <= truth[0]["start_s"] + 0.5
    assert all(left.end_ns <= right.start_ns for left, right in itertools.pairwise(heard))


def test_pocketsphinx_does_not_remember_what_it_heard_before(pocketsphinx: PocketSphinxWords) -> None:
    spoken = [clip for region in regions_of(station(3))[:2] for clip in utterances(region)]
    spoken.append(Clip(0, (spoken[0].samples // 5).astype(np.int16)))
    decoder = pocketsphinx._decoder
    forwards = [pocketsphinx_words.hear(decoder, clip) for clip in spoken]
    pocketsphinx_words.hear(decoder, Clip(0, silence(0.2)))  # digital silence drives an adapting mean to NaN
    backwards = [pocketsphinx_words.hear(decoder, clip) for clip in reversed(spoken)]
    assert len(spoken) >= 3
    assert forwards == backwards[::-1]


def test_who_hears_english_only_is_passed_over_for_other_languages() -> None:
    german, english = TranscribeParams(language="de"), TranscribeParams()
    for operator in (PocketSphinxWords, Whisper):
        told = {rung.name: operator.cannot(rung.knobs, german) for rung in operator.rungs()}
        assert all((why is not None) == (".en" in name or name == "pocketsphinx") for name, why in told.items())
        assert all("hears English only, not 'de'" in why for why in told.values() if why)
        assert all(operator.cannot(rung.knobs, english) is None for rung in operator.rungs())


# --- captions --------------------------------------------------------------------------------------------


def captioned(codec: str, payloads: Sequence[tuple[int, int, bytes]], language: str = "eng") -> Segment:
    """A segment of 10 s .. 15 s with captions (start_ms, duration_ms, data), on a clock that starts at 2 s."""
    tracks = (
        Track(kind="video", codec="h264", time_base=(1, 90_000)),
        Track(kind="subtitle", codec=codec, time_base=(1, 1000), language=language),
    )
    packets = tuple(Packet(1, start + 2000, start + 2000, size, True, data) for start, size, data in payloads)
    return Segment(
        stream="station",
        index=0,
        start_ns=10 * 10**9,
        duration_ns=5 * 10**9,
        origin_ns=2 * 10**9,
        tracks=tracks,
        packets=(Packet(0, 0, 0, 1, True, b"picture"), *packets),
    )


def timed_text(text: bytes, boxes: bytes = b"") -> bytes:
    return len(text).to_bytes(2, "big") + text + boxes


@pytest.mark.parametrize(
    ("codec", "data", "text"),
    [
        ("mov_text", timed_text("Café at noon".encode()), "Café at noon"),
        ("mov_text", timed_text(b"styled", b"\0\0\0\x0cstyl\0\0\0\0"), "styled"),
        ("mov_text", timed_text(b"\xfe\xff" + "über".encode("utf-16-be")), "über"),
        ("mov_text", timed_text(b"two\nlines"), "two lines"),
        ("subrip", b"{\\an8}<i>Mind</i> the <font color='#fff'>gap</font>", "Mind the gap"),
        ("subrip", b"2 < 3 and 5 > 4", "2 < 3 and 5 > 4"),
        ("webvtt", b"<v Anna>Tom &amp; <00:00:01.000><c>Jerry</c>", "Tom & Jerry"),
        ("ass", b"0,0,Default,,0,0,0,,{\\i1}Yes,{\\i0} no\\Nand\\hso", "Yes, no and so"),
        ("text", b"plain", "plain"),
    ],
)
def test_captions_are_read_in_every_format(codec: str, data: bytes, text: str) -> None:
    (speech,) = captions_of(captioned(codec, [(11_000, 1500, data)]))
    assert (speech.text, speech.start_ns, speech.end_ns) == (text, 11 * 10**9, 12_500_000_000)


def test_a_caption_belongs_to_the_segment_in_which_it_appears() -> None:
    payloads = [(at, 4000, str(at).encode()) for at in (9999, 10_000, 14_999, 15_000)]
    found = captions_of(captioned("text", payloads))
    assert [speech.text for speech in found] == ["10000", "14999"]
    assert found[1].end_ns == 18_999_000_000


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv"])
def test_captions_of_a_file_are_read_once_each(tmp_path: Path, name: str) -> None:
    shown = ((0.5, 1.5, "one"), (2.2, 3.9, "two"), (4.0, 5.5, "three"))
    path = make(tmp_path / name, video="libx264", captions=shown, seconds=6, options={"g": "25", "bf": "0"})
    media = segments_of(path, segment_s=2.0)
    assert len(media) > 1
    found = captions_of(*media)
    assert [(each.start_ns / 1e9, each.end_ns / 1e9, each.text) for each in found] == list(shown)


def test_an_empty_caption_only_clears_the_screen() -> None:
    assert captions_of(captioned("mov_text", [(11_000, 10, timed_text(b""))])) == []


@pytest.mark.parametrize(("language", "asked"), [("ger", "de"), ("deu", "de"), ("", "de"), ("und", "fr"), ("en", "en")])
def test_captions_of_the_language_asked_for_are_taken(language: str, asked: str) -> None:
    assert captions.captions_track(captioned("text", [], language), asked) == 1


def test_captions_in_another_language_are_refused() -> None:
    with pytest.raises(Permanent, match=r"no captions in 'en' .*found: text fra"):
        captions.captions_track(captioned("text", [], "fra"), "en")


@pytest.mark.parametrize(
    ("codecs", "reason"),
    [
        ({"subtitle": ("mov_text",)}, None),
        ({"subtitle": ("dvd_subtitle", "ass")}, None),
        ({"subtitle": ("dvd_subtitle",)}, "captions are dvd_subtitle"),
        ({"audio": ("aac",)}, "no captions"),
    ],
)
def test_captions_need_a_track_of_text(codecs: dict[str, tuple[str, ...]], reason: str | None) -> None:
    missing = Captions.missing(Settings(), Machine(num_cores=1), MediaInfo(codecs=codecs))
    assert missing is None if reason is None else missing is not None and reason in missing


def test_quality_orders_captions_before_whisper_before_pocketsphinx() -> None:
    rungs = [*Captions.rungs(), *Whisper.rungs(), *PocketSphinxWords.rungs()]
    assert [rung.quality for rung in rungs] == sorted((rung.quality for rung in rungs), reverse=True)
    assert len({rung.name for rung in rungs}) == len(rungs)
