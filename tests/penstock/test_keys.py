"""`penstock keys`: real servers with what it writes, over TLS, and each role tries what it may not."""

import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import anyio
import hosts
import pytest
import structlog
from clusters import ready
from conftest import Eventually
from nodes import SCENES, running_nodes

from engine.run.registry import open_registry
from engine.spec.stream import StreamSpec
from engine.spec.workflow import parse_workflow
from penstock.client import connect as connect_client
from penstock.keys import ROLES, make_keys
from streams import subjects
from streams.errors import LinkError, UserError
from streams.media.segmenter import segments
from streams.records import encode
from streams.wire import identity
from streams.wire.ledger import open_ledger
from streams.wire.link import Link, connect
from streams.wire.nkeys import UserKey
from streams.wire.server import nats_server_version

pytestmark = pytest.mark.anyio
NUM = 3


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """Three servers, each on a host of its own, started as their configurations say; the keys' folder and the URLs."""
    if why := hosts.why_none():
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("keys") / "nats"
    with ExitStack() as stack:
        each = stack.enter_context(hosts.joined_hosts(NUM))
        make_keys(folder, [host.address for host in each], store="data")
        for host in each:
            own = folder.parent / host.address
            shutil.copytree(folder, own)
            command = [nats_server_version()[0], "-c", f"{host.address}.conf"]
            with (own / "log").open("w") as log:
                server = subprocess.Popen(host.command(command), cwd=own, stdout=log, stderr=log)
            stack.callback(server.wait)
            stack.callback(server.kill)
        yield folder, ",".join(f"nats://{host.address}:4222" for host in each)


@pytest.fixture
async def as_admin(cluster: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Link]:
    """Connected, once the servers are there."""
    become(monkeypatch, cluster[0], "admin")
    await ready(cluster[1])
    async with connect(cluster[1]) as link:
        yield link


def become(monkeypatch: pytest.MonkeyPatch, folder: Path, role: str) -> None:
    monkeypatch.setenv(identity.CREDENTIALS, str(folder / f"{role}.nk"))
    monkeypatch.setenv(identity.AUTHORITY, str(folder / "tls" / "ca.pem"))


PUBLISH = [
    "penstock.ingest.s",
    "penstock.jobs.submit",
    "penstock.media.s.0",
    "penstock.answers.j.s",
    "$KV.penstock_jobs.j",
    "$JS.API.STREAM.MSG.GET.PENSTOCK_ANSWERS",
    "$JS.API.STREAM.MSG.GET.KV_penstock_streams",
    "$JS.API.DIRECT.GET.KV_penstock_streams",
    "$JS.API.CONSUMER.CREATE.KV_penstock_streams",
    "$JS.API.STREAM.PURGE.PENSTOCK_RESULTS",
    "$JS.API.STREAM.DELETE.PENSTOCK_NONE",
    "$JS.API.STREAM.DELETE.PENSTOCK_MEDIA",
    "other.subject",
]
HEAR = [
    "penstock.answers.>",
    "penstock.ingest.>",
    "penstock.media.>",
    "$KV.penstock_streams.>",
    "_INBOX_node.>",
    "_INBOX_admin.>",
    ">",
]
MAY: dict[str, set[str]] = {
    "admin": {*PUBLISH, *HEAR},
    "node": {*PUBLISH[:-1], *HEAR[:-2]},
    "worker": {*PUBLISH[:-2], *HEAR[:-3]},
    "publisher": {"penstock.ingest.s"},
    "subscriber": {"$JS.API.STREAM.MSG.GET.PENSTOCK_ANSWERS", "penstock.answers.>"},
    "client": {
        "penstock.ingest.s",
        "penstock.jobs.submit",
        "$JS.API.STREAM.MSG.GET.PENSTOCK_ANSWERS",
        "penstock.answers.>",
    },
}


@pytest.mark.parametrize("role", ROLES)
async def test_each_role_may_what_it_may_and_nothing_else(
    cluster: tuple[Path, str], as_admin: Link, monkeypatch: pytest.MonkeyPatch, eventually: Eventually, role: str
) -> None:
    become(monkeypatch, cluster[0], role)
    async with connect(cluster[1]) as link:
        with structlog.testing.capture_logs() as logs:
            for subject in PUBLISH:
                if subject != "$JS.API.STREAM.DELETE.PENSTOCK_MEDIA" or subject not in MAY[role]:  # it would be
                    await link.client.publish(subject, b"", reply=f"{ROLES[role].inbox}.x.{subject.replace('.', '-')}")
            for subject in HEAR:
                await link.client.subscribe(subject)

            def refused() -> set[str]:
                said = " ".join(str(entry.get("error")) for entry in logs).lower()
                return {subject for subject in (*PUBLISH, *HEAR) if f'"{subject.lower()}"' in said}

            expected = {*PUBLISH, *HEAR} - MAY[role]
            await eventually(lambda: refused() >= expected)
            await link.client.flush()
    assert refused() == expected


async def test_a_key_and_the_authority_are_asked_for(
    cluster: tuple[Path, str], as_admin: Link, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    make_keys(other, ["nats-1"])
    url = cluster[1].partition(",")[0]
    become(monkeypatch, other, "admin")
    monkeypatch.setenv(identity.AUTHORITY, str(cluster[0] / "tls" / "ca.pem"))
    with pytest.raises(LinkError, match=r"(?i)authorization violation|does it know these credentials"):
        async with connect(url):
            pass
    become(monkeypatch, cluster[0], "admin")
    monkeypatch.setenv(identity.AUTHORITY, str(other / "tls" / "ca.pem"))
    with pytest.raises(LinkError, match="certificate verify failed") as refused:
        async with connect(url):
            pass
    assert "\n" not in str(refused.value)


async def test_nodes_workers_and_clients_do_their_work_with_their_keys(
    cluster: tuple[Path, str], as_admin: Link, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from clips import first_seconds

    folder, url = cluster
    become(monkeypatch, folder, "node")  # what makes the streams
    async with connect(url) as link:
        ledger, registry = await open_ledger(link), await open_registry(link)
        with running_nodes(url, tmp_path, 0) as nodes:
            become(monkeypatch, folder, "worker")
            await anyio.to_thread.run_sync(nodes.start)
            await registry.declare(StreamSpec(name="s", segment_s=1.0))
            clip = first_seconds(tmp_path / "clip.mp4", 3.0)
            for record in segments(str(clip), stream="s", target_s=1.0):
                subject = subjects.media("s", record.index) if hasattr(record, "index") else subjects.media_end("s")
                await ledger.put(subject, encode(record))
            become(monkeypatch, folder, "client")
            async with connect_client(url) as client:
                job = await client.submit("s", workflow=parse_workflow(SCENES))
                with anyio.fail_after(60):
                    answers = [answer async for answer in job.answers()]
            assert answers


def test_what_is_written_is_for_its_owner_and_not_over_what_is_there(tmp_path: Path) -> None:
    written = make_keys(tmp_path / "keys", ["nats-1", "10.0.0.7"])
    assert {path.name for path in written if path.suffix == ".nk"} == {f"{role}.nk" for role in ROLES}
    for path in written:
        is_secret = path.suffix in (".nk", ".key")
        assert path.stat().st_mode & 0o777 == (0o600 if is_secret else 0o644), path
        assert ("PRIVATE KEY" in path.read_text()) == (path.suffix == ".key")
    seeds = {line for path in written if path.suffix == ".nk" for line in path.read_text().splitlines()[-1:]}
    assert len(seeds) == len(ROLES)
    for path in (path for path in written if path.suffix == ".conf"):
        text = path.read_text()
        assert not any(seed in text for seed in seeds)
        assert all(UserKey.of_seed(seed).public in text for seed in seeds)
    with pytest.raises(UserError, match="is not empty"):
        make_keys(tmp_path / "keys", ["nats-1"])


@pytest.mark.parametrize(
    ("servers", "says"),
    [
        (["nats 1"], "no name or address"),
        (['a"b'], "no name or address"),
        (["a", "a"], "each once"),
        (["../x"], "no name or address"),
        ([""], "no name or address"),
    ],
)
def test_what_is_no_server_is_refused(tmp_path: Path, servers: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        make_keys(tmp_path / "keys", servers)
    assert not (tmp_path / "keys").exists()
