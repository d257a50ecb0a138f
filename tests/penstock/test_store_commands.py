"""What a store holds, a copy of it taken and brought back, and its end, by the command."""

import json
import os
import sys
import tarfile
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from engine.node.backup import ABOUT
from engine.run.registry import open_registry
from engine.spec.stream import StreamSpec
from penstock.cli.main import main
from streams import subjects
from streams.subjects import Key
from streams.wire.kv import open_bucket
from streams.wire.ledger import MAX_INLINE_BYTES, open_ledger
from streams.wire.link import connect
from streams.wire.server import embedded

RECORDS = {
    **{subjects.media("cam", index): bytes([index]) * 2000 for index in range(3)},
    subjects.media("large", 0): b"m" * (MAX_INLINE_BYTES + 1000),
    subjects.result("a1", "cam", Key.of(0)): b"result",
    subjects.dead("a1", "cam", Key.of(1)): b"dead",
}


async def fill(store: Path) -> None:
    async with embedded(store) as url, connect(url) as link:
        ledger = await open_ledger(link)
        for subject, data in RECORDS.items():
            await ledger.put(subject, data)
        await ledger.append(subjects.answers("j1", "cam"), b"{}", 0)
        await (await open_registry(link)).declare(StreamSpec(name="cam", url="rtsp://user:word@example.org/x"))


async def held(store: Path) -> tuple[dict[str, bytes], dict[str, StreamSpec], int]:
    async with embedded(store) as url, connect(url) as link:
        ledger = await open_ledger(link)
        records = {subject: stored.data for subject in RECORDS if (stored := await ledger.get(subject)) is not None}
        seq = await ledger.last_seq(subjects.answers("j1", "cam"))
        return records, await (await open_registry(link)).streams(), seq


def run(*words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main(["store", *words])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.fixture
def store(tmp_path: Path) -> Path:
    anyio.run(fill, tmp_path / "store")
    return tmp_path / "store"


def test_a_copy_that_is_brought_back_holds_what_was_there(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, second = tmp_path / "all.tar", tmp_path / "second"
    code, out, err = run("backup", str(file), "--store", str(store), capsys=capsys)
    assert (code, out.startswith("backup ")) == (0, True)
    assert "PENSTOCK_MEDIA" in err
    assert os.stat(file).st_mode & 0o077 == 0  # noqa: PTH116
    assert run("restore", str(file), "--store", str(second), capsys=capsys)[0] == 0
    before, after = anyio.run(held, store), anyio.run(held, second)
    assert before == after
    assert after[0] == RECORDS
    assert after[1]["cam"].url == "rtsp://user:word@example.org/x"
    code, out, err = run("restore", str(file), "--store", str(second), capsys=capsys)
    assert (code, out) == (2, "")
    assert "has PENSTOCK_MEDIA" in err
    code, _, err = run("backup", str(file), "--store", str(store), capsys=capsys)  # it would write over it
    assert (code, err.count("\n")) == (2, 1)


def test_each_stream_is_told_with_what_it_takes(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run("du", "--store", str(store), "--json", capsys=capsys)
    assert code == 0
    found = {line["stream"]: line for line in map(json.loads, out.splitlines())}
    assert found["cam"].items() >= {"num_segments": 3, "media_bytes": 6000, "num_results": 1, "num_answers": 1}.items()
    assert found["cam"]["results_bytes"] == len(b"result" + b"dead")
    assert (found["large"]["num_segments"], found["large"]["media_bytes"]) == (1, MAX_INLINE_BYTES + 1000)
    _, out, _ = run("du", "--store", str(store), capsys=capsys)
    assert [line.split()[0] for line in out.splitlines()] == ["stream", "cam", "large", "all"]
    assert "6.0 kB" in out


def changed(file: Path, **changes: Any) -> Path:
    """A backup whose description says something else."""
    path = file.with_name(f"{len(list(file.parent.iterdir()))}.tar")
    with tarfile.open(file) as old, tarfile.open(path, "w") as new:
        for entry in old:
            content = old.extractfile(entry)
            assert content is not None
            data = content.read()
            if entry.name == ABOUT:
                data = msgspec.json.encode({**msgspec.json.decode(data), **changes})
                entry.size = len(data)
            (file.parent / "part").write_bytes(data)
            with (file.parent / "part").open("rb") as part:
                new.addfile(entry, part)
    return path


def test_what_is_no_backup_is_refused_and_leaves_nothing(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, second = tmp_path / "all.tar", tmp_path / "second"
    run("backup", str(file), "--store", str(store), capsys=capsys)
    (tmp_path / "text").write_text("no archive\n" * 1000)
    (tmp_path / "half").write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    about = {"config": {"name": "SECRETS"}, "state": {}}
    for bad, why in [
        (tmp_path / "none", "cannot read"),
        (tmp_path / "text", "is no backup"),
        (tmp_path / "half", "is no backup"),
        (changed(file, format=9), "format 9"),
        (changed(file, streams={"SECRETS": about}), "SECRETS"),
        (changed(file, streams={"PENSTOCK_MEDIA": {}}), "is no backup"),
    ]:
        code, out, err = run("restore", str(bad), "--store", str(second), capsys=capsys)
        assert (code, out, err.count("\n")) == (2, "", 1), (bad, err)
        assert why in err
    assert run("restore", str(file), "--store", str(second), capsys=capsys)[0] == 0
    assert anyio.run(held, second)[0] == RECORDS


async def put_a_job(store: Path) -> None:
    async with embedded(store) as url, connect(url) as link:
        await (await open_bucket(link, "penstock_jobs")).put("mine", b"1")


async def job_there(store: Path) -> bytes | None:
    async with embedded(store) as url, connect(url) as link:
        held = await (await open_bucket(link, "penstock_jobs")).get("mine")
        return None if held is None else held.value


def test_what_stands_in_the_way_of_a_backup_is_not_taken_away(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, second = tmp_path / "all.tar", tmp_path / "second"
    run("backup", str(file), "--store", str(store), capsys=capsys)
    anyio.run(put_a_job, second)  # and nothing else of ours
    code, _, err = run("restore", str(file), "--store", str(second), capsys=capsys)
    assert (code, "has KV_penstock_jobs already" in err) == (2, True)
    assert anyio.run(job_there, second) == b"1"


async def refused_while_it_runs(store: Path) -> None:
    async with embedded(store):
        command = [sys.executable, "-m", "penstock", "store", "rm", "--store", str(store), "--yes"]
        done = await anyio.run_process(command, check=False)
    assert done.returncode == 2
    assert b"in use" in done.stderr


def test_a_store_is_deleted_only_where_nothing_runs_on_it_and_on_a_word(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    anyio.run(refused_while_it_runs, store)
    assert "say --yes" in run("rm", "--store", str(store), capsys=capsys)[2]
    assert store.is_dir()
    assert run("rm", "--store", str(store), "--yes", capsys=capsys)[0] == 0
    assert not store.exists()
    (tmp_path / "photos").mkdir()
    for path in (store, tmp_path / "photos"):
        code, _, err = run("rm", "--store", str(path), "--yes", capsys=capsys)
        assert (code, "there is no store" in err) == (2, True)
    assert (tmp_path / "photos").is_dir()
