"""A market report: clips and texts are asked in parallel, drafted in sections and formatted; what none of them answers
surely enough stands in a list of its own, for a person.

    python examples/market_report.py examples/market [--out report.md] [--sure 0.5] [--store DIR]

A text is made a recording in which nothing is heard and each sentence is a caption, so it is read, stored, searched and
traced like any clip. Every statement says where it is from. Without a language model the statements are the sources'
own sentences; with one among the machine's endpoints (docs/models.md) it answers, and what the sources do not bear out
is no answer.
"""

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import av
import numpy as np

from engine.spec.workflow import load_workflow
from penstock.batch import Outcome, files_among, run_many
from penstock.running import Options

WORKFLOW = Path(__file__).parent / "market" / "report.toml"
SECTIONS = {
    "Prices": (
        "What does wheat cost?",
        "What does barley cost?",
        "What does milk cost?",
        "What does power cost?",
        "Did gas become cheaper?",
    ),
    "Supply": ("How is the harvest?", "Is there room in the storage?", "Which reactors are back?", "What opened?"),
    "Outlook": ("What will become dearer?", "What do traders expect?"),
}
TEXTS = {".txt", ".md"}
SENTENCE_S = 4.0
RATE = 48_000


class Statement(NamedTuple):
    """What a source says to a question. `at` is where: minutes and seconds of a clip, or a text's sentence."""

    text: str
    source: str
    at: str
    sure: float
    is_answer: bool  # else it is what came nearest


def as_recording(text: Path, folder: Path) -> Path:
    """A text as a recording in which each sentence is a caption."""
    sentences = re.findall(r"\S[^.!?]*[.!?]", " ".join(text.read_text(encoding="utf-8").split()))
    path = folder / f"{text.name}.mkv"
    with av.open(str(path), "w") as container:
        silence: Any = container.add_stream("libopus", rate=RATE, layout="mono")
        captions: Any = container.add_stream("srt")
        captions.codec_context.subtitle_header = b"[Script Info]\nScriptType: v4.00+\n"
        part = np.zeros((1, 960), np.int16)
        for number, sentence in enumerate(sentences):
            packet: Any = av.Packet(sentence.encode())
            packet.stream, packet.time_base = captions, Fraction(1, 1000)
            packet.pts = packet.dts = round(number * SENTENCE_S * 1000)
            packet.duration = round(SENTENCE_S * 900)
            container.mux(packet)
            for start in range(round(number * SENTENCE_S * RATE), round((number + 1) * SENTENCE_S * RATE), 960):
                frame = av.AudioFrame.from_ndarray(part, format="s16", layout="mono")
                frame.sample_rate, frame.time_base, frame.pts = RATE, Fraction(1, RATE), start
                container.mux(silence.encode(frame))
        container.mux(silence.encode(None))
    return path


def statements_of(outcomes: Sequence[Outcome]) -> dict[str, list[Statement]]:
    """What the sources say, by question, the surest first."""
    found: dict[str, list[Statement]] = {}
    for outcome in outcomes:
        name = Path(outcome.input).name
        is_text = Path(name).suffix == ".mkv" and Path(Path(name).stem).suffix in TEXTS
        source = Path(name).stem if is_text else name
        for answer in outcome.answers:
            for each in (*answer.evidence[:1], *answer.perhaps[:1]):
                number, (minutes, seconds) = round(each.start_s / SENTENCE_S) + 1, divmod(int(each.start_s), 60)
                at = f"sentence {number}" if is_text else f"{minutes}:{seconds:02}"
                text = answer.answer if answer.evidence else each.text
                sure = answer.confidence if answer.evidence else 0.0
                found.setdefault(answer.question, []).append(Statement(text, source, at, sure, bool(answer.evidence)))
    return {asked: sorted(some, key=lambda each: -each.sure) for asked, some in found.items()}


def report(outcomes: Sequence[Outcome], sure: float) -> str:
    """The report, in Markdown."""
    found = statements_of(outcomes)
    lines, doubtful, told = ["# Market report", ""], list[str](), set[str]()
    for title, questions in SECTIONS.items():
        lines += [f"## {title}", ""]
        for asked in questions:
            some = found.get(asked, [])
            surely = [each for each in some if each.is_answer and each.sure >= sure]
            for each in surely:
                if each.text not in told:
                    lines.append(f"- {each.text} ({each.source}, {each.at})")
                told.add(each.text)
            if not surely:
                said = "; ".join(f'"{each.text}" ({each.source}, {each.at})' for each in some[:2])
                doubtful.append(f"- [ ] {asked} {f'Perhaps: {said}' if said else 'Nobody says.'}")
        lines.append("")
    failed = [f"- {Path(outcome.input).name}: {outcome.error}" for outcome in outcomes if not outcome.is_done]
    for title, some_lines in (("For a person to check", doubtful), ("Not read", failed)):
        lines += [f"## {title}", "", *some_lines, ""] if some_lines else []
    return "\n".join(lines)


async def gathered(inputs: Sequence[Path], store: Path | None) -> list[Outcome]:
    """What became of each clip and text."""
    with tempfile.TemporaryDirectory() as folder:
        texts = [path for each in inputs for path in sorted(each.rglob("*") if each.is_dir() else [each])]
        made = [as_recording(path, Path(folder)) for path in texts if path.suffix in TEXTS]
        clips = [str(each) for each in inputs if each.is_dir() or each.suffix not in TEXTS]
        files = [*(files_among(clips) if clips else []), *made]
        asks = [asked for questions in SECTIONS.values() for asked in questions]
        return await run_many(load_workflow(WORKFLOW), files, asks, Options(store=store))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help="clips, texts (.txt, .md), and folders")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the report goes (default: stdout)")
    parser.add_argument("--sure", type=float, default=0.5, help="how sure an answer has to be to be printed (0.5)")
    parser.add_argument("--store", type=Path, metavar="DIR", help="where what was computed is kept")
    asked = parser.parse_args()
    outcomes = anyio.run(gathered, asked.inputs, asked.store)
    text = report(outcomes, asked.sure)
    if asked.out is None:
        sys.stdout.write(text)
    else:
        asked.out.write_text(text, encoding="utf-8")
    return 0 if all(outcome.is_done for outcome in outcomes) else 4


if __name__ == "__main__":
    sys.exit(main())
