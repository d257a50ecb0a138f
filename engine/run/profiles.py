"""The profiles of this machine: a folder with a file for each rung, device and clip, written whole.

A file that cannot be read, or is of another machine or of another version of its operator, is passed over. Of a rung
with the same knobs the newest MAX_CLIPS stay. Beside them stands what pools learned of it as they worked: where that is
the newer, it is what the next ones begin with, for it is of the media that come here.
"""

import hashlib
import os
import platform
import re
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import structlog

from engine.spec.profile import Expected, OnRung, Profile, Seen
from streams.decoding import from_json
from streams.errors import Malformed, UserError

log = structlog.get_logger(__name__)
T = TypeVar("T", Profile, Seen)

MAX_CLIPS = 8
MAX_SEEN = 64  # settings of the knobs of a rung
MAX_BYTES = 1 << 20  # of one file
MEASURED, SEEN = "profile", "seen"  # with which files' names begin
FOLDER = "profiles"  # beside the store's other things


class Profiles:
    """Those in a folder, of one machine."""

    def __init__(self, folder: Path, machine: str) -> None:
        self.folder = folder
        self.machine = machine

    @staticmethod
    def beside(store: Path, num_cores: int) -> "Profiles":
        return Profiles(store / FOLDER, machine_name(num_cores))

    def all(self) -> list[Profile]:
        """Of this machine, by name and the newest first."""
        found = _read(self.folder.glob(f"*/*/{MEASURED}-*.json"), Profile, self.machine)
        newest = sorted((each for each in found if each.times), key=lambda each: each.at, reverse=True)
        return sorted(newest, key=lambda each: each.on[:3])

    def of(self, on: OnRung, media: str | None = None, segment_s: float | None = None) -> Profile | None:
        """The newest of a rung; where a clip is named, that on it, and on segments of that length."""
        found = _read(self._folder_of(on).glob(f"{MEASURED}-*.json"), Profile, self.machine)
        fits = [
            each
            for each in found
            if each.on == on
            and each.times
            and (media is None or each.media == media)
            and (segment_s is None or each.segment_s == segment_s)
        ]
        return max(fits, key=lambda each: each.at, default=None)

    def judged(self) -> dict[tuple[str, str], float]:
        """How good rungs were found to be, by capability and name; of a capability on that set of labels on which most
        of its rungs were judged, or the last of these."""
        sets: dict[tuple[str, str], dict[str, float]] = {}
        for each in sorted(self.all(), key=lambda each: each.at):
            if each.quality is not None:
                sets.setdefault((each.capability, each.quality.labels), {})[each.rung] = each.quality.value
        best: dict[str, dict[str, float]] = {}
        for (capability, _), found in sets.items():
            if len(found) >= len(best.get(capability, ())):
                best[capability] = found
        return {(capability, rung): value for capability, found in best.items() for rung, value in found.items()}

    def seen(self, on: OnRung) -> Seen | None:
        """What pools learned of a rung."""
        found = _read([self._seen_path(on)], Seen, self.machine)
        return next((each for each in found if each.on == on), None)

    def expected(self, on: OnRung) -> Expected | None:
        """What a pool is to begin with; None where nothing is known."""
        profile, seen = self.of(on), self.seen(on)
        profiled = None
        if profile is not None and profile.fresh == 1 and profile.runs_in != "async":  # or each takes what it may
            profiled = profile.line_alone, profile.line
        if seen is not None and (profile is None or seen.at >= profile.at):
            return Expected(seen.base_s, seen.per_item_s, seen.spread, profiled)
        if profile is None:
            return None
        base_s, per_item_s = (profile.alone_s, 0.0) if profile.runs_in == "async" else profile.line
        return Expected(base_s, profile.fresh * per_item_s, profile.spread, profiled)

    def keep(self, profile: Profile) -> None:
        """Raises UserError where it cannot be written."""
        rung = f"{MEASURED}-{_digest([*profile.on, profile.machine])}"
        clip = _digest([profile.media, profile.segment_s])
        self._write(self._folder_of(profile.on) / f"{rung}-{clip}.json", profile)
        self._prune(profile.on, rung, MAX_CLIPS)

    def keep_seen(self, seen: Seen) -> None:
        """Raises UserError where it cannot be written."""
        self._write(self._seen_path(seen.on), seen)
        self._prune(seen.on, SEEN, MAX_SEEN)

    def _prune(self, on: OnRung, prefix: str, num: int) -> None:
        """Let the newest stay; another process may do the same."""
        try:
            paths = list(self._folder_of(on).glob(f"{prefix}-*.json"))
            for old in sorted(paths, key=lambda each: each.stat().st_mtime_ns)[:-num]:
                old.unlink(missing_ok=True)
        except OSError as error:
            log.info("profiles_not_pruned", error=str(error))

    def _write(self, path: Path, record: Profile | Seen) -> None:
        part = path.with_suffix(f".{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=1))
            part.replace(path)
        except OSError as error:
            raise UserError(f"cannot keep profiles in {path.parent}: {error.strerror}; give --store DIR") from error

    def _folder_of(self, on: OnRung) -> Path:
        return self.folder / _plain(on.capability) / _plain(on.rung)

    def _seen_path(self, on: OnRung) -> Path:
        return self._folder_of(on) / f"{SEEN}-{_digest([*on, self.machine])}.json"


def _read(paths: Iterable[Path], kind: type[T], machine: str) -> list[T]:
    found = []
    for path in sorted(paths):
        try:
            about = path.stat()
            if not stat.S_ISREG(about.st_mode) or about.st_size > MAX_BYTES:
                continue
            record = from_json(path.read_bytes(), kind)
        except FileNotFoundError:
            continue
        except (OSError, Malformed) as error:
            log.info("profile_passed_over", path=str(path), error=str(error))
            continue
        if record.machine == machine:
            found.append(record)
    return found


def _digest(what: Sequence[Any]) -> str:
    return hashlib.sha256(msgspec.json.encode(what, order="sorted")).hexdigest()[:16]


def machine_name(num_cores: int) -> str:
    """What figures hold on: the processor, how many of its cores, and the architecture."""
    return f"{_processor()}, {num_cores} core{'s' * (num_cores != 1)}, {platform.machine()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or "unknown processor"


def _plain(name: str) -> str:
    """As part of a file's name."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)[:80] or "_"
