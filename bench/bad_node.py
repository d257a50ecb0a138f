"""A real node to throw at (`penstock serve` with one worker), and whether it is still well."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import msgspec
from bad_watch import MAX_GROWTH_BYTES, Defect, Ruined, rss_bytes
from measure import ROOT

UP_S = 60.0
WELL_S = 25.0  # for what is asked of a node that others keep busy; one that was made up is forgotten within 11 s
ANSWER_S = 5.0
GOOD = "good"  # a stream with a second of the demo's clip, to its end
LOOKED_AT = ("/v1/jobs", "/v1/streams", f"/v1/streams/{GOOD}", "/v1/nodes", "/v1/signals", "/metrics", "/v1/operators")
_FRAME = re.compile(r'File ".*?/((?:streams|engine|operators|penstock)/[\w/]+\.py)", line (\d+), in (\w+)')


class Node:
    """A node over a store of its own."""

    def __init__(self, clip: bytes) -> None:
        self._clip = clip
        self._folder = Path(tempfile.mkdtemp(prefix="penstock-bad-"))
        self._log = self._folder / "log"
        self._read_to: dict[Path, int] = {}
        with self._log.open("wb") as log:
            command = [
                sys.executable,
                "-m",
                "penstock",
                "serve",
                "--store",
                str(self._folder / "store"),
                "--http",
                "127.0.0.1:0",
            ]
            environment = {**os.environ, "NO_COLOR": "1", "PYTHONPATH": str(ROOT)}
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)
        self.url = self._up()
        self.nats = str(msgspec.json.decode((self._folder / "store" / "server.json").read_bytes())["url"])
        self.http = httpx.Client(base_url=self.url, timeout=WELL_S, trust_env=False)
        self._ready()
        self._expect("POST", f"/v1/streams/{GOOD}/media", 201, content=clip)
        self._good_request()
        self._first_bytes = self._rss()

    def close(self) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
            self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def complaint(self) -> str:
        """What the node or its worker has logged since this was asked that it must not: a traceback, an error."""
        said = ""
        for path in (self._log, self._folder / "store" / "workers.log"):
            if path is not self._log and not path.exists():
                continue
            with path.open("rb") as file:
                file.seek(self._read_to.get(path, 0))
                data = file.read()
            self._read_to[path] = self._read_to.get(path, 0) + len(data)
            said += data.decode(errors="replace")
        for line in said.splitlines():
            if found := _trouble(line):
                return found
        return ""

    def check(self) -> None:
        """Raises Defect where it is not well, Ruined where it cannot be thrown at any more."""
        if self._process.poll() is not None:
            raise Ruined("node", f"the node ended with exit code {self._process.returncode}: {self.complaint()}")
        grown = self._rss() - self._first_bytes
        if grown > MAX_GROWTH_BYTES:
            raise Ruined("memory", f"the node and its worker have {grown >> 20} MiB more resident")
        self._ready()
        self._good_request()
        for path in LOOKED_AT:
            self._expect("GET", path, 200)
        if complaint := self.complaint():
            raise Defect("exception", f"the log: {complaint}")

    def tidy(self, keep: Collection[str] = (GOOD,)) -> None:
        """Away with the jobs and streams that were accepted, so that the node is not kept busy by them."""
        for job in self._listed("jobs"):
            if job["state"] in ("running", "unreadable") and job["job"] not in keep:
                self._asked("DELETE", f"/v1/jobs/{quote(job['job'], safe='')}")
        for stream in self._listed("streams"):
            if stream["stream"] not in keep:
                self._asked("DELETE", f"/v1/streams/{quote(stream['stream'], safe='')}")

    # --- how -----------------------------------------------------------------------------------------------------

    def _listed(self, what: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = msgspec.json.decode(self._expect("GET", f"/v1/{what}", 200).content)[what]
        return found

    def _up(self) -> str:
        ends_s = time.monotonic() + UP_S
        while time.monotonic() < ends_s:
            said = self._log.read_text(errors="replace")
            if found := re.search(r"HTTP +(http://\S+)", said):
                if "Ctrl-C" in said:
                    return found[1]
            elif self._process.poll() is not None:
                break
            time.sleep(0.05)
        raise RuntimeError(f"the node does not come up: {self._log.read_text(errors='replace')[-500:]}")

    def _ready(self) -> None:
        ends_s = time.monotonic() + WELL_S
        while (response := self._asked("GET", "/readyz")).status_code != 200:
            if time.monotonic() > ends_s:
                raise Ruined("node", f"not ready for {WELL_S:g} s: {response.text[:200]}")
            time.sleep(0.1)

    def _good_request(self) -> None:
        """A capability on the clip: it was computed once, and is found again."""
        response = self._expect("POST", "/v1/operators/detect_scenes?timeout_s=20", 200, content=self._clip)
        if not response.json()["outputs"]:
            raise Ruined("node", f"a good request was answered with {response.text[:200]}")

    def _expect(self, method: str, path: str, status: int, **more: Any) -> httpx.Response:
        response = self._asked(method, path, **more)
        if response.status_code != status:
            raise Ruined("node", f"{method} {path}: {response.status_code} {response.text[:200]}: {self.complaint()}")
        return response

    def _asked(self, method: str, path: str, **more: Any) -> httpx.Response:
        try:
            return self.http.request(method, path, **more)
        except httpx.HTTPError as error:
            raise Ruined("node", f"{method} {path}: {type(error).__name__}: {error}; {self.complaint()}") from error

    def _rss(self) -> int:
        """Of the node and its children."""
        pids = [self._process.pid]
        for pid in pids:
            with suppress(OSError):
                pids += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return sum(map(rss_bytes, pids))


def _trouble(line: str) -> str:
    """What a line of a log says that no log must: an exception of no kind of ours, or an error."""
    try:
        record = msgspec.json.decode(line)
    except msgspec.DecodeError:
        return line if "Traceback" in line or "never retrieved" in line or "never awaited" in line else ""
    if not isinstance(record, dict) or (record.get("level") not in ("error", "critical") and "exception" not in record):
        return ""
    trace = str(record.get("exception", ""))
    frames = _FRAME.findall(trace)
    file, line_number, function = frames[-1] if frames else ("", "", "")
    where = f"{file}:{line_number} {function}"
    said = {key: value for key, value in record.items() if key not in ("exception", "timestamp", "level", "event")}
    return f"{record.get('event')} {where} {(trace.splitlines() or [''])[-1][:300]} {str(said)[:200]}"
