"""Draws the seven scenes of the demo clip, at twice their size and then reduced (anti-aliasing).

Each scene is a function that draws what stands still once and returns a `Draw`, which adds what moves.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 1280, 720
SUPERSAMPLE = 2
WORD_GAP = 1.45  # spaces between words: signs are set wide
BOLD = Path("/usr/share/fonts/truetype/dejavu/DejaVuSans-Bold.ttf")

Draw = Callable[[float], Image.Image]  # seconds since the scene began -> RGB picture, WIDTH x HEIGHT


class Sheet:
    """A transparent drawing surface in picture coordinates, drawn larger and reduced once by `image`."""

    def __init__(self, width: float = WIDTH, height: float = HEIGHT) -> None:
        self.size = (round(width), round(height))
        self._large = Image.new("RGBA", (self.size[0] * SUPERSAMPLE, self.size[1] * SUPERSAMPLE))
        self._pen = ImageDraw.Draw(self._large)

    def box(self, x: float, y: float, width: float, height: float, fill: str, radius: float = 0) -> None:
        corners = [value * SUPERSAMPLE for value in (x, y, x + width, y + height)]
        corners[2], corners[3] = corners[2] - 1, corners[3] - 1
        self._pen.rounded_rectangle(corners, radius * SUPERSAMPLE, fill)

    def disc(self, x: float, y: float, radius: float, fill: str, height: float | None = None) -> None:
        tall = radius if height is None else height
        self._pen.ellipse([v * SUPERSAMPLE for v in (x - radius, y - tall, x + radius, y + tall)], fill)

    def shape(self, points: Sequence[tuple[float, float]], fill: str) -> None:
        self._pen.polygon([(x * SUPERSAMPLE, y * SUPERSAMPLE) for x, y in points], fill)

    def line(self, points: Sequence[tuple[float, float]], fill: str, width: float) -> None:
        scaled = [(x * SUPERSAMPLE, y * SUPERSAMPLE) for x, y in points]
        self._pen.line(scaled, fill, round(width * SUPERSAMPLE), "curve")

    def bow(self, x: float, y: float, radius: float, start: float, end: float, fill: str, width: float) -> None:
        """An arc from `start` to `end`, degrees clockwise from three o'clock."""
        corners = [v * SUPERSAMPLE for v in (x - radius, y - radius, x + radius, y + radius)]
        self._pen.arc(corners, start, end, fill, round(width * SUPERSAMPLE))

    def text(self, x: float, y: float, text: str, size: float, fill: str, anchor: str = "m") -> None:
        """One line centred on y; `anchor` says what of it is at x: l(eft), m(iddle) or r(ight)."""
        font = ImageFont.truetype(BOLD, size * SUPERSAMPLE)
        words = text.split()
        gap = WORD_GAP * font.getlength(" ")
        width = sum(map(font.getlength, words)) + gap * (len(words) - 1)
        x = x * SUPERSAMPLE - width * {"l": 0.0, "m": 0.5, "r": 1.0}[anchor]
        for word in words:
            self._pen.text((x, y * SUPERSAMPLE), word, fill, font, "lm")
            x += font.getlength(word) + gap

    def blend(self, top: str, bottom: str, y: float = 0, height: float = HEIGHT) -> None:
        """A vertical gradient across the full width."""
        width = self.size[0] * SUPERSAMPLE
        rows = round(height * SUPERSAMPLE)
        ramp = Image.linear_gradient("L").resize((width, rows), Image.Resampling.BICUBIC)
        band = Image.composite(Image.new("RGB", (width, rows), bottom), Image.new("RGB", (width, rows), top), ramp)
        self._large.paste(band, (0, round(y * SUPERSAMPLE)))

    def image(self) -> Image.Image:
        return self._large.resize(self.size, Image.Resampling.BOX)


def over(still: Image.Image, *sprites: tuple[Image.Image, float, float]) -> Image.Image:
    """The still with each (sprite, x, y) laid on it, as RGB."""
    picture = still.convert("RGB")
    for sprite, x, y in sprites:
        picture.paste(sprite, (round(x), round(y)), sprite)
    return picture


def person(coat: str, trousers: str, hair: str, skin: str = "#e8b998") -> Image.Image:
    """A standing traveller with a suitcase, 150 x 260."""
    s = Sheet(150, 260)
    s.box(52, 150, 20, 98, trousers, 6)
    s.box(76, 150, 20, 98, trousers, 6)
    s.box(46, 240, 30, 14, "#22242c", 6)
    s.box(74, 240, 30, 14, "#22242c", 6)
    s.box(42, 70, 64, 104, coat, 22)
    s.line([(100, 92), (118, 164)], coat, 15)
    s.disc(119, 170, 8, skin)
    s.box(102, 196, 44, 54, "#8a5a34", 7)
    s.line([(114, 196), (114, 178), (130, 178), (130, 196)], "#5d3a20", 4)
    s.box(66, 54, 16, 22, skin)
    s.disc(74, 36, 26, hair, 28)
    s.disc(76, 42, 20, skin, 22)
    return s.image()


def front() -> Draw:
    s = Sheet()
    s.blend("#7fc4ee", "#fdeccb", 0, 560)
    s.disc(1080, 130, 62, "#fff3c4")
    s.disc(1080, 130, 50, "#ffe18a")
    s.shape([(0, 560), (0, 430), (180, 370), (420, 440), (760, 360), (1050, 430), (1280, 380), (1280, 560)], "#9cc7a0")
    s.box(0, 545, 1280, 175, "#c9c3b8")
    s.box(0, 600, 1280, 120, "#4c5058")
    for x in range(20, 1280, 120):
        s.box(x, 656, 64, 7, "#e9e4d4")
    s.box(140, 300, 1000, 250, "#b5573f")
    s.shape([(110, 305), (170, 240), (1110, 240), (1170, 305)], "#59616e")
    s.box(420, 170, 440, 380, "#c4664a")
    s.shape([(390, 175), (640, 60), (890, 175)], "#4a525f")
    s.shape([(440, 168), (640, 80), (840, 168)], "#d9795b")
    s.disc(640, 134, 32, "#f7f3e6")
    s.line([(640, 134), (640, 112)], "#22242c", 5)
    s.line([(640, 134), (626, 142)], "#22242c", 5)
    s.box(436, 192, 408, 66, "#17395c", 10)
    s.text(640, 225, "MILLBROOK STATION", 31, "#ffffff")
    s.box(520, 268, 240, 44, "#efe6cf", 6)
    s.text(640, 290, "BUILT IN 1884", 25, "#4b3623")
    for x in (185, 265, 345, 895, 975, 1055):
        s.box(x, 345, 56, 130, "#f5e6c8", 4)
        s.box(x + 7, 352, 42, 116, "#6fa3c7", 2)
        s.shape([(x + 9, 440), (x + 47, 360), (x + 47, 384), (x + 9, 464)], "#8db9d4")
    s.disc(640, 400, 78, "#f5e6c8")
    s.box(562, 400, 156, 150, "#f5e6c8")
    s.disc(640, 403, 66, "#37536b")
    s.box(574, 403, 132, 147, "#37536b")
    s.box(637, 340, 6, 210, "#f5e6c8")
    for x in (90, 1190):
        s.box(x - 7, 450, 14, 100, "#6b4a2f")
        s.disc(x, 410, 58, "#4f8a5b", 66)
        s.disc(x - 16, 392, 30, "#66a06c")
    still = s.image()
    c = Sheet(240, 90)
    for x, y, r in ((60, 55, 32), (105, 42, 40), (155, 50, 36), (190, 62, 24)):
        c.disc(x, y, r, "#fffaf0")
    cloud = c.image()
    v = Sheet(210, 90)
    v.shape([(48, 42), (76, 8), (146, 8), (176, 42)], "#2d7d8c")
    v.shape([(62, 40), (82, 16), (108, 16), (108, 40)], "#cfeaf2")
    v.shape([(115, 40), (115, 16), (142, 16), (162, 40)], "#cfeaf2")
    v.box(8, 38, 196, 34, "#3596a8", 14)
    for x in (52, 158):
        v.disc(x, 70, 18, "#22242c")
        v.disc(x, 70, 8, "#c8ccd2")
    car = v.image()
    return lambda t: over(still, (cloud, 80 + 9 * t, 60), (cloud, 900 + 6 * t, 30), (car, 1300 - 105 * t, 590))


def board() -> Draw:
    s = Sheet()
    s.blend("#3b3048", "#6a4d4c")
    for x in range(-40, 1280, 220):
        s.box(x, 0, 26, 560, "#4b3b51")
    s.box(0, 560, 1280, 160, "#8d7664")
    s.box(0, 560, 1280, 8, "#a98f78")
    s.box(120, 22, 1040, 424, "#0d1016", 18)
    s.box(134, 36, 1012, 396, "#1a1f29", 12)
    s.box(134, 36, 1012, 90, "#24508a", 12)
    s.text(640, 80, "DEPARTURES", 54, "#ffffff")
    rows = (("07:30 FOREST", "CANCELLED"), ("08:10 LAKE", "ON TIME"), ("09:30 VALLEY", "ON TIME"))
    for number, (train, status) in enumerate(rows):
        y = 142 + number * 94
        s.box(156, y, 968, 84, "#0b0e13", 8)
        s.text(190, y + 42, train, 48, "#ffd34d", "l")
        s.text(1096, y + 42, status, 38, "#ff6a55" if status == "CANCELLED" else "#7fe08a", "r")
    s.box(330, 0, 10, 24, "#0d1016")
    s.box(940, 0, 10, 24, "#0d1016")
    still = s.image()
    walkers = (
        (person("#d9a441", "#2f3542", "#3a2418"), 60.0, 46.0),
        (person("#4f9d8f", "#3c3147", "#15110f", "#a8754f"), 420.0, 0.0),
        (person("#b8505f", "#283246", "#c99a4b"), 1180.0, -58.0),
    )
    return lambda t: over(still, *((who, x + speed * t, 455) for who, x, speed in walkers))


def train_car(nose: bool = False) -> Image.Image:
    """One car of the blue train, 430 x 210; the first has a sloping nose at the left."""
    s = Sheet(430, 210)
    s.box(60, 178, 310, 18, "#20242c", 6)
    for x in (82, 132, 298, 348):
        s.disc(x, 192, 18, "#2c313b")
        s.disc(x, 192, 8, "#79808c")
    if nose:
        s.shape([(8, 150), (30, 96), (100, 14), (425, 14), (425, 184), (20, 184)], "#1d5fae")
        s.shape([(46, 92), (98, 34), (126, 34), (126, 92)], "#cfe9f7")
    else:
        s.box(4, 14, 421, 170, "#1d5fae", 10)
    s.box(20 if nose else 4, 124, 405 if nose else 421, 16, "#f2c230")
    for x in range(150 if nose else 30, 400, 66):
        s.box(x, 42, 48, 54, "#cfe9f7", 6)
        s.shape([(x + 6, 90), (x + 28, 46), (x + 40, 46), (x + 18, 90)], "#e9f6fc")
    return s.image()


def platform() -> Draw:
    s = Sheet()
    s.blend("#bfe0f2", "#f4f0e2", 0, 480)
    s.shape([(0, 420), (200, 330), (430, 410), (700, 320), (980, 410), (1280, 340), (1280, 480), (0, 480)], "#a9cfae")
    s.box(0, 470, 1280, 90, "#75695d")
    for x in range(-10, 1280, 46):
        s.box(x, 500, 26, 14, "#54483e")
    s.box(0, 492, 1280, 7, "#b9bec6")
    s.box(0, 512, 1280, 7, "#d4d8de")
    still = s.image()
    f = Sheet()
    f.box(0, 545, 1280, 175, "#b9b3a9")
    f.box(0, 545, 1280, 12, "#8d877d")
    f.box(0, 572, 1280, 14, "#f2c230")
    f.shape([(0, 0), (1280, 0), (1280, 70), (0, 104)], "#2f5d50")
    f.shape([(0, 104), (1280, 70), (1280, 84), (0, 120)], "#e7dcc0")
    for x in (190, 1110):
        f.box(x, 90, 22, 530, "#2a4f45")
        f.box(x - 12, 606, 46, 18, "#234239", 4)
        f.line([(x + 11, 190), (x - 55, 108)], "#2a4f45", 9)
        f.line([(x + 11, 190), (x + 77, 104)], "#2a4f45", 9)
    f.box(470, 90, 8, 60, "#22242c")
    f.box(802, 86, 8, 64, "#22242c")
    f.box(430, 140, 420, 96, "#17395c", 12)
    f.box(438, 148, 404, 80, "#ffffff", 8)
    f.box(444, 154, 392, 68, "#17395c", 6)
    f.text(640, 188, "PLATFORM 14", 45, "#ffffff")
    f.box(880, 600, 190, 14, "#7b4f2c", 5)
    f.box(880, 566, 190, 12, "#8f5e36", 5)
    for x in (896, 1042):
        f.box(x, 570, 10, 74, "#3a3d45")
    near = f.image()
    near.alpha_composite(person("#c8434f", "#2b3350", "#5b3420"), (560, 420))
    cars = [train_car(nose=True)] + [train_car()] * 6
    return lambda t: over(
        still, *((car, 1290 + 428 * n - 470 * max(0, t - 0.6), 312) for n, car in enumerate(cars)), (near, 0, 0)
    )


def tickets() -> Draw:
    s = Sheet()
    s.blend("#e9d7b4", "#d8bd8c")
    for x in range(0, 1280, 80):
        s.box(x, 0, 3, 560, "#dcc69b")
    s.box(330, 26, 620, 92, "#7c2734", 14)
    s.text(640, 72, "TICKETS", 58, "#fff3d6")
    s.box(250, 140, 780, 390, "#5e3b22", 16)
    s.box(272, 162, 736, 350, "#bfe0e6", 8)
    s.shape([(272, 512), (430, 162), (530, 162), (372, 512)], "#cce8ec")
    s.box(430, 372, 156, 150, "#2c4a7c", 44)
    s.shape([(484, 374), (508, 410), (532, 374)], "#ffffff")
    s.shape([(502, 392), (514, 392), (518, 452), (508, 466), (498, 452)], "#b03a48")
    s.box(492, 336, 32, 44, "#c98d65")
    s.disc(508, 300, 48, "#c98d65", 54)
    s.shape([(454, 282), (464, 240), (552, 240), (562, 282)], "#2c4a7c")
    s.box(450, 276, 124, 13, "#172b4d", 5)
    s.disc(490, 304, 5, "#2c211a")
    s.disc(526, 304, 5, "#2c211a")
    s.bow(508, 314, 18, 30, 150, "#7a4631", 4)
    s.box(680, 232, 290, 132, "#10141b", 12)
    s.box(690, 242, 270, 112, "#182230", 8)
    s.text(825, 298, "$18.40", 62, "#6ff0b0")
    s.box(800, 364, 50, 150, "#343a45")
    s.box(0, 520, 1280, 200, "#8a5630")
    s.box(0, 520, 1280, 22, "#a76c40")
    for x in range(40, 1280, 310):
        s.box(x, 575, 270, 120, "#7a4a28", 8)
    s.box(560, 506, 190, 26, "#d5d9de", 6)
    s.box(585, 516, 140, 9, "#3a3d45", 4)
    still = s.image()
    p = Sheet(110, 70)
    p.box(0, 0, 110, 70, "#fbe9c0", 6)
    p.box(0, 0, 110, 18, "#e07a3f", 6)
    for y in (30, 42, 54):
        p.box(12, y, 60 if y == 54 else 86, 5, "#b59a6c", 2)
    paper = p.image()

    def draw(t: float) -> Image.Image:
        out = round(70 * min(1.0, max(0.0, (t - 4.2) / 1.6)))
        return over(still, (paper.crop((0, 70 - out, 110, 70)), 600, 521)) if out else over(still)

    return draw


def cafe() -> Draw:
    s = Sheet()
    s.blend("#f6dcc3", "#eebf9b")
    s.box(0, 0, 1280, 70, "#9a3b32")
    for x in range(0, 1280, 128):
        s.shape([(x, 62), (x + 64, 62), (x + 64, 92), (x + 32, 112), (x, 92)], "#c9564a")
        s.shape([(x + 64, 62), (x + 128, 62), (x + 128, 92), (x + 96, 112), (x + 64, 92)], "#fff4e6")
    s.box(120, 150, 600, 352, "#6f4a2d", 14)
    s.box(138, 168, 564, 316, "#26332e", 6)
    s.text(420, 222, "STATION CAFE", 52, "#fff4e6")
    s.box(190, 264, 460, 4, "#d8a65a")
    s.text(420, 334, "COFFEE $2.80", 46, "#ffe08a")
    s.text(420, 420, "TEA $1.90", 46, "#ffe08a")
    s.box(790, 250, 420, 16, "#7d5231", 4)
    for x, colour in ((830, "#c98242"), (930, "#b86f33"), (1030, "#d0904d")):
        s.disc(x + 44, 226, 50, colour, 26)
        s.disc(x + 40, 216, 32, "#e2ab68", 9)
    s.box(1130, 190, 54, 60, "#5f8f7f", 8)
    s.box(0, 540, 1280, 180, "#7d5231")
    s.box(0, 540, 1280, 26, "#96663f")
    s.disc(930, 556, 170, "#e9e3da", 20)
    s.disc(930, 551, 150, "#ffffff", 14)
    s.bow(1040, 448, 42, -100, 120, "#2f6f8f", 17)
    s.shape([(822, 400), (1038, 400), (1016, 510), (984, 548), (876, 548), (844, 510)], "#3b86a8")
    s.disc(930, 400, 108, "#2f6f8f", 24)
    s.disc(930, 403, 96, "#4a2a18", 18)
    still = s.image()

    def draw(t: float) -> Image.Image:
        steam = Sheet(320, 130)
        for n in range(3):
            points = [(90 + 70 * n + (8 + y / 12) * math.sin(y / 17 + 2.2 * t + n), 128 - y) for y in range(0, 118, 4)]
            steam.line(points, "#fffaf2", 7)
        veil = steam.image()
        veil.putalpha(veil.getchannel("A").point(lambda alpha: alpha * 3 // 5))
        return over(still, (veil, 770, 268))

    return draw


def lost_property() -> Draw:
    s = Sheet()
    s.blend("#41636b", "#2c464f")
    s.box(330, 28, 620, 92, "#f2c230", 14)
    s.text(640, 74, "LOST PROPERTY", 54, "#2a2416")
    for y in (330, 560):
        s.box(80, y, 1120, 22, "#a8794b", 4)
        s.box(80, y + 22, 1120, 8, "#7c5631")
    for x in (80, 1178):
        s.box(x, 170, 22, 550, "#8c6239")
    s.box(150, 218, 190, 112, "#7a4b93", 16)
    s.box(205, 194, 80, 30, "#5d3872", 12)
    s.box(217, 204, 56, 24, "#3b5a63", 8)
    s.box(236, 262, 18, 20, "#e6c15a", 4)
    s.disc(480, 318, 92, "#2b2d36", 13)
    s.box(425, 236, 110, 82, "#2b2d36", 18)
    s.box(425, 284, 110, 18, "#b8505f")
    s.disc(650, 286, 44, "#e4703a")
    s.bow(650, 286, 34, 200, 330, "#f19a6a", 7)
    for x, tall, colour in ((780, 110, "#3f8f6d"), (812, 128, "#d98a3d"), (848, 98, "#4d77b8"), (876, 118, "#c95a5a")):
        s.box(x, 330 - tall, 28, tall, colour, 3)
        s.box(x + 4, 342 - tall, 20, 8, "#f4ead2")
    s.line([(300, 370), (300, 540)], "#3a2a20", 8)
    s.bow(318, 538, 21, 0, 180, "#3a2a20", 8)
    dome = [(300 + 150 * math.cos(a), 500 - 128 * math.sin(a)) for a in np.linspace(0, math.pi, 60)]
    hem = [(150 + 300 * u, 500 - 16 * abs(math.sin(4 * math.pi * u))) for u in np.linspace(0, 1, 80)]
    s.shape(dome + hem, "#d7263d")
    fold = [(300 + 52 * math.cos(a), 500 - 128 * math.sin(a)) for a in np.linspace(0, math.pi, 40)]
    s.shape(fold + [(x, y) for x, y in hem if 248 < x < 352], "#ea4a5c")
    s.box(297, 358, 6, 18, "#3a2a20", 3)
    s.box(520, 430, 480, 104, "#f7f1df", 10)
    s.text(760, 482, "CALL 555-0178", 48, "#1f3a44")
    s.box(0, 700, 1280, 20, "#21363d")
    for x, wide, tall, colour in ((150, 190, 92, "#c99a5f"), (360, 130, 66, "#b98850")):
        s.box(x, 702 - tall, wide, tall, colour, 4)
        s.box(x + wide / 2 - 12, 702 - tall, 24, tall, "#e0bd86")
    s.box(560, 612, 330, 90, "#3f6f8d", 16)
    s.box(560, 612, 330, 34, "#4d83a4", 16)
    for x in (610, 816):
        s.box(x, 612, 24, 90, "#2c5068")
        s.box(x - 4, 636, 32, 22, "#e6c15a", 5)
    s.disc(1096, 520, 44, "#d9a15c", 42)
    s.disc(1096, 456, 30, "#d9a15c", 27)
    s.shape([(1068, 450), (1070, 416), (1092, 434)], "#d9a15c")
    s.shape([(1124, 450), (1122, 416), (1100, 434)], "#d9a15c")
    for x in (1085, 1107):
        s.disc(x, 454, 4, "#22242c", 5)
    s.shape([(1091, 465), (1101, 465), (1096, 471)], "#8f4b3a")
    s.disc(1096, 528, 22, "#f3dcb4", 26)
    still = s.image()
    still.alpha_composite(clock_face(), (980, 188))

    def draw(t: float) -> Image.Image:
        tail = Sheet(140, 120)
        for y in range(8, 100):
            tail.disc(70 + 0.32 * y * math.sin(math.pi * t - y / 60), y, 7.5, "#c98d46")
        return over(still, (tail.image(), 1050, 552))

    return draw


def clock_face() -> Image.Image:
    s = Sheet(150, 142)
    s.box(5, 5, 140, 137, "#6d4527", 20)
    s.disc(75, 72, 56, "#fbf5e4")
    for n in range(12):
        a = n * math.pi / 6
        s.disc(75 + 46 * math.cos(a), 72 + 46 * math.sin(a), 3.5, "#3a2a20")
    s.line([(75, 72), (75, 38)], "#22242c", 5)
    s.line([(75, 72), (100, 84)], "#22242c", 6)
    return s.image()


def night() -> Draw:
    s = Sheet()
    s.blend("#0b1330", "#6a5f94", 0, 520)
    for n in range(90):
        s.disc((n * 397) % 1280, (n * n * 31 + n * 57) % 330, 1 + (n % 3) * 0.6, "#f4f1dc")
    s.disc(1040, 120, 58, "#fdf3cf")
    for x, y, r in ((1022, 104, 11), (1058, 138, 15), (1064, 96, 7)):
        s.disc(x, y, r, "#ece0b2")
    s.shape([(0, 480), (190, 210), (350, 420), (560, 170), (800, 440), (1010, 240), (1280, 470), (1280, 540), (0, 540)],
            "#353d73")  # fmt: skip
    s.shape([(126, 300), (190, 210), (238, 273), (206, 262), (184, 292), (160, 272)], "#c8cfe8")
    s.shape([(492, 248), (560, 170), (638, 258), (600, 246), (566, 276), (530, 240)], "#c8cfe8")
    s.shape([(956, 291), (1010, 240), (1072, 293), (1034, 282), (1008, 304), (984, 280)], "#c8cfe8")
    s.blend("#20376b", "#16264c", 520, 200)
    for n in range(22):
        s.box((n * 233) % 1240, 540 + (n * 47) % 70, 40 + (n * 13) % 50, 3, "#3b568f", 1)
    s.box(0, 408, 1280, 200, "#6b5a63")
    s.box(0, 400, 1280, 10, "#857480")
    for x in range(-60, 1280, 280):
        s.disc(x + 130, 552, 116, "#1d2f60", 100)
        s.box(x + 14, 552, 232, 58, "#1d2f60")
        s.box(x + 246, 596, 48, 20, "#4c3f49", 5)
    s.box(0, 630, 1280, 90, "#0a0c10")
    s.box(0, 630, 1280, 4, "#3b4252")
    s.text(70, 676, "22:15 MOUNTAINS", 45, "#ffb53d", "l")
    s.text(1210, 676, "PLATFORM 12", 45, "#ffb53d", "r")
    still = s.image()
    c = Sheet(300, 78)
    c.box(0, 6, 294, 58, "#6c7596", 12)
    c.box(0, 46, 294, 6, "#b8505f")
    for x in range(18, 270, 44):
        c.box(x, 18, 30, 22, "#ffd978", 4)
    for x in (40, 78, 216, 254):
        c.disc(x, 66, 10, "#14161f")
    car = c.image()
    return lambda t: over(still, *((car, -310 - 296 * n + 150 * t, 326) for n in range(5)))


SCENERY: dict[str, Callable[[], Draw]] = {
    "front": front,
    "board": board,
    "platform": platform,
    "tickets": tickets,
    "cafe": cafe,
    "lost property": lost_property,
    "night": night,
}
