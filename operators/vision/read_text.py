"""Reads the text visible in the picture, by PP-OCRv6 small (RapidOCR, ONNX Runtime).

Both steps cost: on one core, of a busy machine, 0.21 s to find the lines of a 1280 x 720 frame and 0.04 s to read each
line. So

- frames are few. Of those sampled twice a second, each shot is read in the `frames_per_scene` that together show the
  most *fine detail at rest*, chosen greedily: pixels of strong gradient that a frame shares with its neighbour.
  Overlaid text is that; blur, transitions and moving background are not. Text that appears in mid-shot adds detail, so
  it draws the next frame. A frame that adds less than MIN_GAIN to all that was read of the segment is not read.
- a line is read once. Where its box looks as before, in any frame of the segment, it is the same line: the strips of
  its box, half its height wide each, differ by less than SAME of the contrast of the text. This also tells how long a
  line is visible: from the first sampled frame of a run to the first without it, or to the edge of the shot.
- lines are found in the frame at DETECTION_WIDTH and read from the whole frame. Against the defaults of the library
  that is three times faster at finding, and reads better: of 144 lines of 14 to 60 px, 16 texts in nine sizes drawn as
  the tests draw them, all exact for 125 (which miss the lines of 14 px). Text is taken to stand upright: no classifier
  of orientation.

Quality: 0.85 for one frame per scene, 0.95 for four, which also reads what replaces other text within a shot.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from msgspec import Meta

from engine.spec.operator import Device, Inputs, Machine, Operator, Rung, Settings
from operators.capabilities import READ_TEXT
from operators.media.pictures import FrameSpec, frames
from operators.media.taking import Frames
from operators.seen import Scenes, ScreenText, Shot, TextLine
from streams.records import MediaInfo

TEXT_FRAMES = FrameSpec(interval_ns=500_000_000, max_width=1280)
FINDS, READS = "PP-OCRv6_det_small.onnx", "PP-OCRv6_rec_small.onnx"  # in RapidOCR's wheel
DETECTION_WIDTH = 768
DETAIL_WIDTH = 320
MIN_GRADIENT = 40  # of 255: a stroke against what is behind it
MAX_NOISE = 24  # of 255: by which a pixel at rest may change
MIN_GAIN = 60  # pixels of detail at DETAIL_WIDTH: a few letters
SAME = 0.4
MIN_CONFIDENCE = 0.5
WHOLE = 0.95  # of width and height: what is found as wide and high as the picture is no line but the picture
# What the finding model was trained with; RapidOCR's own 0.5 makes it cut lines at blanks. Source: PaddleOCR, DB.
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

Image = npt.NDArray[np.uint8]
Quad = npt.NDArray[np.float32]  # [4, 2], corners in pixels, clockwise from the top left
Mask = npt.NDArray[np.bool_]


class ReadTextKnobs(Settings, frozen=True):
    frames_per_scene: Annotated[int, Meta(ge=1, le=32)] = 1


class ReadText(Operator):
    """Text visible in sampled frames, by PP-OCR (RapidOCR, ONNX Runtime)."""

    capability = READ_TEXT
    name = "rapidocr"
    version = 2
    Knobs = ReadTextKnobs
    knobs: ReadTextKnobs
    _reader: "LineReader"

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return (
            Rung("rapidocr-4-frames", 0.95, ReadTextKnobs(frames_per_scene=4)),
            Rung("rapidocr-1-frame", 0.85, ReadTextKnobs(frames_per_scene=1)),
        )

    @classmethod
    def missing(cls, knobs: Any, machine: Machine, media: MediaInfo | None) -> str | None:
        if importlib.util.find_spec("rapidocr") is None:
            return "RapidOCR is not installed: pip install rapidocr onnxruntime"
        return None

    def demands(self) -> tuple[Any, ...]:
        return (TEXT_FRAMES,)

    def load(self, device: Device) -> None:
        self._reader = LineReader(device.num_threads)

    def process(self, batch: Sequence[Inputs]) -> Sequence[ScreenText]:
        return [self._screen_text(inputs) for inputs in batch]

    def _screen_text(self, inputs: Inputs) -> ScreenText:
        scenes: Scenes = inputs.here("scenes")
        sampled = frames(inputs.here("media"), TEXT_FRAMES)
        if not len(sampled.times_ns):
            return ScreenText()
        lines = read_lines(self._reader, sampled, scenes.observations, self.knobs.frames_per_scene)
        height, width = sampled.images.shape[1:3]
        found = [
            TextLine(
                start_ns=start, end_ns=end, text=line.text, confidence=line.confidence, box=line.box(width, height)
            )
            for line in lines
            for start, end in visible_intervals(line.visible, sampled.times_ns, scenes.observations)
        ]
        return ScreenText(observations=tuple(sorted(_merged(found), key=_reading_order)))


class LineReader:
    """Finds and reads lines of text in one picture, by the models in RapidOCR's wheel. Deterministic; no network."""

    def __init__(self, num_threads: int) -> None:
        import rapidocr

        models = Path(rapidocr.__file__).parent / "models"
        self._models: Any = rapidocr.RapidOCR(
            params={
                "Global.log_level": "critical",
                "Global.use_preprocess_img": False,  # the size is ours to choose
                "Global.use_vertical_padding": False,
                "EngineConfig.onnxruntime.intra_op_num_threads": num_threads,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
                # Named by path, since what is named otherwise is downloaded where it is missing.
                "Det.model_path": str(models / FINDS),
                "Det.limit_type": "max",  # never enlarge
                "Det.limit_side_len": DETECTION_WIDTH,
                "Det.mean": MEAN,
                "Det.std": STD,
                "Rec.model_path": str(models / READS),
                "Rec.rec_batch_num": 1,  # a batch is padded to its longest line: one line would affect another
            }
        )

    def find(self, image: Image) -> list[Quad]:
        """The lines of an RGB picture, uint8 [H, W, 3], in reading order."""
        import cv2

        scale = min(1.0, DETECTION_WIDTH / image.shape[1])
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        found = self._models(cv2.cvtColor(small, cv2.COLOR_RGB2BGR), use_det=True, use_cls=False, use_rec=False).boxes
        if found is None:
            return []
        whole = np.array(small.shape[1::-1]) * WHOLE
        lines = [quad for quad in np.asarray(found, np.float32) if not (np.ptp(quad, axis=0) > whole).all()]
        return [_taller(quad / np.float32(scale)) for quad in lines]

    def read(self, image: Image, quads: Sequence[Quad]) -> list[tuple[str, float]]:
        """Text and confidence of each line."""
        import cv2

        if not quads:
            return []
        crops = self._models.crop_text_regions(cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quads)
        read = self._models.recognize_txt(crops)
        return [(text.strip(), float(score)) for text, score in zip(read.txts, read.scores, strict=True)]


def _taller(quad: Quad) -> Quad:
    """The box with a twentieth of its height more above and below."""
    down = (quad[[3, 2]] - quad[[0, 1]]) * 0.05
    return np.concatenate((quad[:2] - down, quad[[2, 3]] + down[::-1])).astype(np.float32)


@dataclass(slots=True)
class Line:
    """A line that was read, and in which of the sampled frames it is visible: bool [N]."""

    text: str
    confidence: float
    quad: Quad
    visible: Mask

    def box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """(x, y, width, height) in fractions of the picture."""
        size = np.array([width, height])
        low, high = (np.clip(corner, 0, size) / size for corner in (self.quad.min(axis=0), self.quad.max(axis=0)))
        x, y, w, h = (round(float(value), 4) for value in (*low, *(high - low)))
        return x, y, w, h


def read_lines(reader: LineReader, sampled: Frames, shots: Sequence[Shot], max_frames: int) -> list[Line]:
    """Every line that could be read from at most `max_frames` frames of each shot."""
    import cv2

    greys = np.stack([cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in sampled.images])
    lines: list[Line] = []
    for chosen in frames_to_read(greys, [_samples_of(shot, sampled.times_ns) for shot in shots], max_frames):
        image = sampled.images[chosen]
        known = [line.quad for line in lines if line.visible[chosen]]
        quads = [quad for quad in reader.find(image) if not any(_covers(other, quad) for other in known)]
        for quad, (text, confidence) in zip(quads, reader.read(image, quads), strict=True):
            if text and confidence >= MIN_CONFIDENCE:
                lines.append(Line(text, round(confidence, 4), quad, where_visible(greys, quad, chosen)))
    return lines


def frames_to_read(greys: Image, shots: Sequence[npt.NDArray[np.intp]], max_frames: int) -> list[int]:
    """Which of the frames, uint8 [N, H, W], to read: at most `max_frames` of each shot's, the most telling first."""
    import cv2

    height = max(1, round(greys.shape[1] * DETAIL_WIDTH / greys.shape[2]))
    small = np.stack([cv2.resize(grey, (DETAIL_WIDTH, height), interpolation=cv2.INTER_AREA) for grey in greys])
    chosen: list[int] = []
    for shot in shots:
        detail = {int(frame): _detail_at_rest(small, int(frame), shot) for frame in shot}
        for read in chosen:
            _uncover(detail, small, read)
        for _ in range(min(max_frames, len(shot))):
            best = max(detail, key=lambda frame: (int(detail[frame].sum()), -frame))
            if detail[best].sum() < MIN_GAIN:
                break
            chosen.append(best)
            _uncover(detail, small, best)
    return chosen


def _detail_at_rest(small: Image, frame: int, shot: npt.NDArray[np.intp]) -> Mask:
    """Where the frame has fine detail that one of its neighbours in the shot has too; all detail if it is alone."""
    import cv2

    strokes = cv2.morphologyEx(small[frame], cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > MIN_GRADIENT
    neighbours = [other for other in (frame - 1, frame + 1) if other in shot]
    at_rest = [_looks_same(small[frame], small[other]) for other in neighbours]
    return np.asarray(strokes & np.any(at_rest, axis=0) if at_rest else strokes, np.bool_)


def _uncover(detail: dict[int, Mask], small: Image, read: int) -> None:
    """Take from each frame the detail that looks the same in a frame that is read."""
    for frame, mask in detail.items():
        mask &= ~_looks_same(small[frame], small[read])


def _looks_same(a: Image, b: Image) -> Mask:
    return np.asarray(np.abs(a.astype(np.int16) - b) < MAX_NOISE, np.bool_)


def where_visible(greys: Image, quad: Quad, read_in: int) -> Mask:
    """In which of the frames, uint8 [N, H, W], the box looks as in the one it was read in: bool [N]."""
    height, width = greys.shape[1:]
    left, top = np.maximum(np.floor(quad.min(axis=0)).astype(int), 0)
    right, bottom = np.minimum(np.ceil(quad.max(axis=0)).astype(int) + 1, (width, height))
    patches = greys[:, top:bottom, left:right].astype(np.float32)
    contrast = float(patches[read_in].std()) + 6.0  # noise of compression, where there is little contrast
    columns = np.abs(patches - patches[read_in]).mean(axis=1)  # [N, width of the box]
    strip = max(2, (bottom - top) // 2)
    begins = np.arange(0, max(1, columns.shape[1] - strip // 2), strip)
    sizes = np.diff(np.append(begins, columns.shape[1]))
    strips = np.add.reduceat(columns, begins, axis=1) / sizes
    return np.asarray(strips.max(axis=1) < SAME * contrast, np.bool_)


def visible_intervals(visible: Mask, times_ns: npt.NDArray[np.int64], shots: Sequence[Shot]) -> list[tuple[int, int]]:
    """The stretches of media time in which a line is seen: from the first to before the next sampled frame of a run,
    or to the edge of the shot where no sample lies between."""
    intervals: list[tuple[int, int]] = []
    for shot in shots:
        inside = _samples_of(shot, times_ns)
        for position, frame in enumerate(inside):
            if not visible[frame]:
                continue
            start = shot.start_ns if position == 0 else int(times_ns[frame])
            end = shot.end_ns if position + 1 == len(inside) else int(times_ns[inside[position + 1]])
            if intervals and intervals[-1][1] == start:
                start = intervals.pop()[0]
            intervals.append((start, end))
    return intervals


def _samples_of(shot: Shot, times_ns: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
    return np.flatnonzero((times_ns >= shot.start_ns) & (times_ns < shot.end_ns))


def _covers(a: Quad, b: Quad) -> bool:
    """Whether most of the box around `b` lies in the box around `a`."""
    low = np.maximum(a.min(axis=0), b.min(axis=0))
    high = np.minimum(a.max(axis=0), b.max(axis=0))
    return bool(np.prod(np.maximum(high - low, 0)) > 0.6 * np.prod(b.max(axis=0) - b.min(axis=0)))


def _merged(found: Sequence[TextLine]) -> list[TextLine]:
    """One observation where the same text was read twice at the same place without a pause between."""
    merged: list[TextLine] = []
    for line in sorted(found, key=_reading_order):
        for position, other in enumerate(merged):
            near = max(abs(a - b) for a, b in zip(line.box, other.box, strict=True)) < 0.02
            if line.text == other.text and near and line.start_ns <= other.end_ns:
                merged[position] = TextLine(
                    start_ns=other.start_ns,
                    end_ns=max(line.end_ns, other.end_ns),
                    text=line.text,
                    confidence=max(line.confidence, other.confidence),
                    box=other.box,
                )
                break
        else:
            merged.append(line)
    return merged


def _reading_order(line: TextLine) -> tuple[int, float, float, str]:
    return line.start_ns, line.box[1], line.box[0], line.text
