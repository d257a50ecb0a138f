"""Every operator that ships holds to the contract, on seconds of the demo's clip or on what others found in it."""

import json
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal
from media_zoo import make
from scripted_endpoint import says, serving

from engine.spec.catalogue import installed
from engine.spec.operator import Operator
from operators import weights
from operators.control.tool_stages import operators
from operators.heard import Guess, GuessedWord, Speech, Transcript, Turn, Turns
from operators.language.acting import Acting
from operators.seen import ScreenText, TextLine
from operators.speech.whisper import QUALITY, is_here
from operators.vision.embed_frames import CLIP, SIGLIP
from penstock.testing import check_contract, gap, loaded, run, segments_of
from streams.records import Segment

EXAMPLES = Path(__file__).parents[2] / "examples"


@cache
def station(max_segments: int) -> list[Segment]:
    return segments_of(EXAMPLES / "station.mp4", segment_s=2.0, max_segments=max_segments)


def shipped(capability: str, name: str) -> type[Operator]:
    return installed().implementation(capability, name)


@cache
def found(capability: str, name: str) -> list[Any]:
    """What one finds there, for those behind it."""
    return list(run(loaded(shipped(capability, name)), {"media": station(2)}))


def captioned(tmp_path: Path) -> dict[str, Any]:
    shown = ((0.5, 1.5, "one"), (2.2, 3.9, "two"), (4.0, 5.5, "three"))
    path = make(tmp_path / "film.mp4", video="libx264", captions=shown, seconds=6, options={"g": "25", "bf": "0"})
    return {"inputs": {"media": segments_of(path, segment_s=2.0)}}


def pictures(tmp_path: Path) -> dict[str, Any]:
    return {"inputs": {"media": station(2)}}


def pictures_and_scenes(tmp_path: Path) -> dict[str, Any]:
    scenes = found("detect_scenes", "content")
    return {"inputs": {"media": station(2), "scenes": scenes}}


def pictures_and_what_they_show(tmp_path: Path) -> dict[str, Any]:
    read = ScreenText(observations=(TextLine(start_ns=0, end_ns=10**9, text="Platform 4"),))
    return {"inputs": {"media": station(2), "evidence": [[read, ScreenText()]]}}


def vectors(tmp_path: Path) -> dict[str, Any]:
    made = run(shipped("embed_frames", "words"), **pictures_and_what_they_show(tmp_path))
    return {"inputs": {"frames": made}, "params": {"text": "a platform"}}


def speech(tmp_path: Path) -> dict[str, Any]:
    return {"inputs": {"media": [*station(2), gap("lost")]}}


def speech_for_whisper(tmp_path: Path) -> dict[str, Any]:
    size = next((size for size in reversed(QUALITY) if is_here(size)), None)
    if size is None:
        pytest.skip("there are no weights of Whisper on this machine")
    return {**speech(tmp_path), "knobs": {"size": size}}


def evidence(tmp_path: Path) -> dict[str, Any]:
    scenes = found("detect_scenes", "content")
    heard = found("transcribe", "pocketsphinx")
    sources = [scenes, [*heard[:1], gap("lost")]]
    return {"inputs": {"evidence": sources}, "params": {"question": "When does the train to the lake leave?"}}


def heard(tmp_path: Path) -> dict[str, Any]:
    said = found("transcribe", "pocketsphinx")
    return {"inputs": {"speech": [*said, gap("lost")]}}


def to_summarize(tmp_path: Path) -> dict[str, Any]:
    return {"inputs": {"evidence": [*heard(tmp_path)["inputs"]["speech"]]}, "params": {"max_points": 2}}


def talk(tmp_path: Path) -> dict[str, Any]:
    knows = ("The train to the lake leaves at ten past eight.", "A return ticket costs nine euros.")
    return {**heard(tmp_path), "params": {"knows": knows}}


def replies(tmp_path: Path) -> dict[str, Any]:
    turns = (Turn(start_ns=0, end_ns=10**9, heard="When?", text="At nine. Or at ten."),)
    return {"inputs": {"text": [Turns(observations=turns), Turns(), gap("lost")]}}


def for_a_voice(tmp_path: Path) -> dict[str, Any]:
    if weights.find("hibari-heart") is None:
        pytest.skip("there is no voice on this machine")
    return replies(tmp_path)


def for_espeak(tmp_path: Path) -> dict[str, Any]:
    if shutil.which("espeak-ng") is None:
        pytest.skip("needs espeak-ng")
    return replies(tmp_path)


def guesses(tmp_path: Path) -> dict[str, Any]:
    words = (GuessedWord(0, 10**9, "the"), GuessedWord(10**9, 2 * 10**9, "train"))
    return {"inputs": {"guess": [Guess(since_ns=0, until_ns=(3 + at) * 10**9, words=words) for at in range(3)]}}


def objects(tmp_path: Path) -> dict[str, Any]:
    return {"inputs": {"objects": found("detect_objects", "nanodet")}}


def tracks(tmp_path: Path) -> dict[str, Any]:
    return {"inputs": {"tracks": run(shipped("track_objects", "nearest"), objects(tmp_path)["inputs"])}}


def filtered(tmp_path: Path) -> dict[str, Any]:
    sources = [found("detect_scenes", "content")]
    return {"inputs": {"evidence": sources}, "params": {"once_in_s": 5.0}}


def watched(tmp_path: Path) -> dict[str, Any]:
    half = {"half": ((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0))}
    return {**tracks(tmp_path), "params": {"zones": half, "stays_s": 1.0}}


GIVEN: Mapping[tuple[str, str], Callable[[Path], dict[str, Any]]] = {
    ("answer_question", "quoting"): evidence,
    ("caption", "cues"): heard,
    ("converse", "knowing"): talk,
    ("speak", "espeak"): for_espeak,
    ("speak", "hibari"): for_a_voice,
    ("count_objects", "tracks"): tracks,
    ("detect_motion", "difference"): pictures,
    ("embed_frames", "words"): pictures_and_what_they_show,
    ("match_text", "nearest"): vectors,
    ("select_frames", "worth"): pictures,
    ("detect_objects", "nanodet"): pictures,
    ("filter_evidence", "words"): filtered,
    ("draft_captions", "local-agreement"): guesses,
    ("settle_speech", "settled"): guesses,
    ("guess_speech", "whisper-guesses"): speech_for_whisper,
    ("detect_scenes", "content"): pictures,
    ("read_text", "rapidocr"): pictures_and_scenes,
    ("summarize", "extracting"): to_summarize,
    ("track_objects", "nearest"): objects,
    ("watch_zones", "zones"): watched,
    ("transcribe", "captions"): captioned,
    ("transcribe", "faster-whisper"): speech_for_whisper,
    ("transcribe", "pocketsphinx"): speech,
}


@pytest.mark.parametrize(("capability", "name"), GIVEN)
def test_every_operator_that_ships_holds_to_the_contract(capability: str, name: str, tmp_path: Path) -> None:
    check_contract(shipped(capability, name), **GIVEN[capability, name](tmp_path))


def test_one_that_asks_a_language_model_holds_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reply = json.dumps({"answer": "not told", "passages": [], "confidence": 0.5})
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(serving(says(reply))) as there:
        (tmp_path / "endpoints.toml").write_text(f'[[endpoint]]\nmodel = "toy"\nurl = "{there.url}"\n')
        monkeypatch.setenv("PENSTOCK_ENDPOINTS", str(tmp_path / "endpoints.toml"))
        heard = [Transcript(observations=(Speech(start_ns=0, end_ns=10**9, text="It leaves at nine."),)), gap("lost")]
        asked = {"inputs": {"evidence": [heard]}, "params": {"question": "When?"}, "knobs": {"model": "toy"}}
        check_contract(shipped("answer_question", "reading"), **asked)  # type: ignore[arg-type]
    assert there.requests


def test_one_that_has_a_language_model_write_holds_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reply = json.dumps({"statements": [{"text": "It leaves at nine.", "passages": [1]}]})
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(serving(says(reply))) as there:
        (tmp_path / "endpoints.toml").write_text(f'[[endpoint]]\nmodel = "toy"\nurl = "{there.url}"\n')
        monkeypatch.setenv("PENSTOCK_ENDPOINTS", str(tmp_path / "endpoints.toml"))
        heard = [Transcript(observations=(Speech(start_ns=0, end_ns=10**9, text="It leaves at nine."),)), gap("lost")]
        check_contract(shipped("summarize", "writing"), inputs={"evidence": heard}, knobs={"model": "toy"})
    assert there.requests


def test_one_that_has_a_language_model_reply_holds_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(serving(says('{"reply": "Yes."}'))) as there,
    ):
        (tmp_path / "endpoints.toml").write_text(f'[[endpoint]]\nmodel = "toy"\nurl = "{there.url}"\n')
        monkeypatch.setenv("PENSTOCK_ENDPOINTS", str(tmp_path / "endpoints.toml"))
        said = Transcript(observations=(Speech(start_ns=0, end_ns=10**9, text="Is it nine?"),))
        check_contract(
            shipped("converse", "conversing"), inputs={"speech": [said, gap("lost")]}, knobs={"model": "toy"}
        )
    assert there.requests


def test_one_whose_model_calls_tools_holds_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def says_what_it_is_shown(request: Any, send: Any) -> Any:
        told = request.body["messages"][-1]["content"]
        said = '{"answer": "IT IS NINE.", "passages": [2], "confidence": 0.9}'
        call = '{"tool": "shouted", "arguments": {"text": "It is nine."}}'
        return says(said if 'tool="shouted"' in told else call)(request, send)

    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(serving(says_what_it_is_shown)) as there,
    ):
        (tmp_path / "endpoints.toml").write_text(f'[[endpoint]]\nmodel = "toy"\nurl = "{there.url}"\n')
        (tmp_path / "tools.toml").write_text('[[tool]]\nname = "shouted"\npython = "toy_tools:shouted"\n')
        monkeypatch.setenv("PENSTOCK_ENDPOINTS", str(tmp_path / "endpoints.toml"))
        monkeypatch.setenv("PENSTOCK_TOOLS", str(tmp_path / "tools.toml"))
        heard = [Transcript(observations=(Speech(start_ns=0, end_ns=10**9, text="It leaves soon."),)), gap("lost")]
        asked = {"question": "When does it leave?", "tools": ["shouted"]}
        check_contract(Acting, inputs={"evidence": [heard]}, params=asked, knobs={"model": "toy"})
        (stage,) = operators()
        check_contract(stage, inputs={"evidence": [heard]})
    assert there.requests


def test_one_that_has_an_endpoint_hear_holds_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hears(request: Any, send: Any) -> None:
        body = b'{"text": "It is nine.", "words": [{"word": "nine.", "start": 0.3, "end": 0.6}]}'
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        await send(f"{head}Connection: close\r\n\r\n".encode() + body)

    with start_blocking_portal() as portal, portal.wrap_async_context_manager(serving(hears)) as there:
        (tmp_path / "endpoints.toml").write_text(f'[[endpoint]]\nmodel = "ear"\nurl = "{there.url}"\nhears = true\n')
        monkeypatch.setenv("PENSTOCK_ENDPOINTS", str(tmp_path / "endpoints.toml"))
        check_contract(shipped("transcribe", "listening"), **speech(tmp_path), knobs={"model": "ear"})
    assert there.requests


def test_none_is_left_out() -> None:
    ours = {
        (capability, name)
        for capability in installed().capabilities
        for name, operator in installed().implementations(capability).items()
        if operator.__module__.startswith("operators.")
    }
    by_models = {("answer_question", "reading"), ("answer_question", "acting"), ("summarize", "writing")}
    by_models |= {("converse", "conversing"), ("transcribe", "listening"), ("caption_frames", "describing")}
    by_models |= {("detect_objects", "rf-detr"), ("detect_objects", "yolox")}  # whose weights are not here
    by_models |= {("embed_frames", CLIP), ("embed_frames", SIGLIP)}  # test_matching.py
    assert ours == {*GIVEN, *by_models}
