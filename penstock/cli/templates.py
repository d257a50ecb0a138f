"""What `penstock new operator` writes, by path. @NAME@, @MODULE@, @CLASS@ and @CAPABILITY@ are filled in."""

OPERATOR: dict[str, str] = {
    "pyproject.toml": """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "@NAME@"
version = "0.1.0"
description = "An operator for Penstock: how loud each segment is."
requires-python = ">=3.11"
dependencies = ["penstock", "numpy"]

[project.entry-points."penstock.operators"]
@MODULE@-rms = "@MODULE@:@CLASS@"

[tool.hatch.build.targets.wheel]
packages = ["src/@MODULE@"]

[tool.pytest.ini_options]
testpaths = ["tests"]
pythonpath = ["src"]
""",
    "src/@MODULE@/__init__.py": '''\
"""Measures how loud each segment is."""

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from msgspec import Meta
from penstock.operators import (
    AudioSpec,
    Capability,
    Demand,
    Inputs,
    Media,
    Operator,
    Port,
    Record,
    Rung,
    Settings,
    audio,
)

SOUND = AudioSpec(sample_rate=16_000)


class Level(Record, frozen=True):
    """What this capability gives for each segment. Give every field you add later a default."""

    rms_db: float  # below full scale; floor_db where there is no sound


class @CLASS@Params(Settings, frozen=True):
    """What can be asked of it in a workflow."""

    floor_db: Annotated[float, Meta(le=0)] = -90.0


@CAPABILITY@ = Capability("@MODULE@", {"media": Port(Media)}, Level, @CLASS@Params)


class @CLASS@(Operator):
    """Root mean square of the samples."""

    capability = @CAPABILITY@
    name = "rms"
    version = 1  # raise it whenever the same input would give another output
    max_batch = 8

    @classmethod
    def rungs(cls) -> Sequence[Rung]:
        return [Rung("rms", quality=1.0, knobs=Settings())]

    def demands(self) -> tuple[Demand, ...]:
        return (SOUND,)

    def process(self, batch: Sequence[Inputs]) -> Sequence[Level]:
        return [self._level(inputs) for inputs in batch]

    def _level(self, inputs: Inputs) -> Level:
        floor_db = inputs.params.floor_db
        samples = audio(inputs.here("media"), SOUND).samples / 32768.0
        power = float(np.mean(samples**2)) if len(samples) else 0.0
        return Level(rms_db=max(floor_db, 10 * math.log10(power)) if power > 0 else floor_db)
''',
    "tests/test_@MODULE@.py": '''\
"""A tone is as loud as it was made, silence is at the floor, and the operator holds to the contract."""

import numpy as np
import pytest
from penstock.operators import Gap
from penstock.testing import check_contract, film, gap, run

from @MODULE@ import @CLASS@

SECOND = np.arange(16_000) / 16_000
TONE = (0.5 * 32767 * np.sin(2 * np.pi * 440 * SECOND)).astype(np.int16)
SILENCE = np.zeros(16_000, np.int16)


def test_a_tone_is_as_loud_as_it_was_made() -> None:
    loud, silent = run(@CLASS@, {"media": film(sound=np.concatenate([TONE, SILENCE]))})
    assert loud.rms_db == pytest.approx(-9.03, abs=0.01)
    assert silent.rms_db == -90


def test_the_floor_is_a_parameter() -> None:
    (silent,) = run(@CLASS@, {"media": film(sound=SILENCE)}, params={"floor_db": -60})
    assert silent.rms_db == -60


def test_a_gap_stays_a_gap() -> None:
    first, second = run(@CLASS@, {"media": [*film(sound=TONE), gap("the camera was off")]})
    assert first.rms_db > -10
    assert isinstance(second, Gap)


def test_it_holds_to_the_contract() -> None:
    check_contract(@CLASS@, {"media": film(sound=np.concatenate([TONE, SILENCE]))})
''',
    "workflow.toml": """\
name = "@NAME@"

[stages.level]
capability = "@MODULE@"
inputs = { media = "media" }
params = { floor_db = -60.0 }
""",
    "README.md": """\
# @NAME@

An operator for Penstock: `src/@MODULE@/__init__.py` says what it does, and
`tests/` shows it. It measures how loud each segment is; put what yours does in its place.

```
python -m pytest                                  # needs no server and no installation of this package
pip install -e .                                  # from now on Penstock finds it
penstock operators
penstock run workflow.toml --input FILE --json
```

`docs/operators.md` of Penstock is the page to know: what an operator reads, what it may raise, how to choose what it
declares.
""",
}
