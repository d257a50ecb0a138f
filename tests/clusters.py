"""A cluster of real nats-servers in a folder, each of which can be killed, frozen and started again."""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import anyio
from hosts import Host

from streams.errors import LinkError
from streams.wire.link import Link, connect
from streams.wire.server import nats_server_version

CONFIGURATION = """\
server_name: n{number}
host: "{address}"
port: {port}
authorization {{ token: "{token}" }}
max_payload: 8MB
ping_interval: "5s"
ping_max: 2
log_file: "{folder}/log"
jetstream {{ store_dir: "{folder}/store", max_file_store: 64GB }}
cluster {{ name: c, host: "{address}", port: {route}, no_advertise: true, routes: [{routes}] }}
"""
TOKEN = "of-the-cluster"


class Cluster:
    """`num` servers that listen on 127.0.0.1, or each on a host of its own."""

    def __init__(self, folder: Path, num: int = 3, hosts: Sequence[Host] = ()) -> None:
        self._binary = nats_server_version()[0]
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._hosts = hosts
        self._addresses = [host.address for host in hosts] or ["127.0.0.1"] * num
        ports = free_ports(2 * num)
        self.ports, routes = ports[:num], ports[num:]
        self.folders = [folder / f"n{number}" for number in range(num)]
        for number in range(num):
            self.folders[number].mkdir(parents=True, exist_ok=True)
            others = ", ".join(f'"nats://{at}:{port}"' for at, port in zip(self._addresses, routes, strict=True))
            text = CONFIGURATION.format(
                number=number,
                address=self._addresses[number],
                port=self.ports[number],
                token=TOKEN,
                folder=self.folders[number],
                route=routes[number],
                routes=others,
            )
            (self.folders[number] / "conf").write_text(text)
            self.start(number)

    @property
    def urls(self) -> list[str]:
        return [f"nats://{TOKEN}@{at}:{port}" for at, port in zip(self._addresses, self.ports, strict=True)]

    @property
    def url(self) -> str:
        return ",".join(self.urls)

    def start(self, number: int) -> None:
        command = [self._binary, "-c", self.folders[number] / "conf"]
        self._processes[number] = subprocess.Popen(
            self._hosts[number].command(command) if self._hosts else command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=os.setpgrp,
        )

    def signal(self, number: int, what: signal.Signals) -> None:
        self._processes[number].send_signal(what)

    def kill(self, number: int) -> None:
        """With SIGKILL; what it had stored stays."""
        self.signal(number, signal.SIGKILL)
        self._processes.pop(number).wait()

    async def ready(self) -> None:
        await ready(self.url)
        async with connect(self.url) as link:
            await self.whole(link)

    async def whole(self, link: Link) -> None:
        """Returns when all servers are there and hold all that is stored."""
        with anyio.fail_after(60):
            while not await self._is_whole(link):  # noqa: ASYNC110 - what it waits for happens in other processes
                await anyio.sleep(0.1)

    async def _is_whole(self, link: Link) -> bool:
        for name in (await link.api("STREAM.NAMES"))["streams"] or ():
            cluster = (await link.api(f"STREAM.INFO.{name}")).get("cluster", {})
            replicas = cluster.get("replicas", ())
            if not cluster.get("leader") or any(not each.get("current") or each.get("offline") for each in replicas):
                return False
        return all(map(self._listens, self._addresses, self.ports))

    def _listens(self, address: str, port: int) -> bool:
        with socket.socket() as probe:
            probe.settimeout(1.0)
            return probe.connect_ex((address, port)) == 0

    def close(self) -> None:
        for number in list(self._processes):
            self.kill(number)


async def ready(url: str) -> None:
    """Returns when JetStream answers."""
    with anyio.fail_after(60):
        while True:
            try:
                async with connect(url, patience_s=30) as link:
                    await link.api("STREAM.NAMES")
                    return
            except LinkError:
                await anyio.sleep(0.1)


@contextmanager
def running_cluster(folder: Path, num: int = 3, hosts: Sequence[Host] = ()) -> Iterator[Cluster]:
    cluster = Cluster(folder, num, hosts)
    try:
        yield cluster
    finally:
        cluster.close()


def free_ports(num: int) -> list[int]:
    """Held open together, so that all are different."""
    probes = [socket.socket() for _ in range(num)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
