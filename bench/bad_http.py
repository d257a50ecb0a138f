"""Bad HTTP, thrown at a real node: requests made from its own OpenAPI document and spoilt, and bytes that are no
request. There is an answer within ANSWER_S or an end of the connection, and never a 5xx but 503 (504 where a wait was
asked for)."""

import json
import socket
from collections.abc import Mapping
from random import Random
from typing import Any
from urllib.parse import quote, urlsplit

import bad_making as making
import msgspec
from bad_node import ANSWER_S, GOOD, Node
from bad_watch import Case, Defect, Outcome, Ruined, one_line
from litestar.di import Provide

from penstock.http.document import document
from penstock.http.face import Face
from penstock.http.routes import HANDLERS

MAX_RESPONSE = 1 << 20
CLEAN = 500  # inputs after which what was accepted is taken away
LATE = 504
METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "CONNECT", "get", "P\u00f6ST", "")
GOOD_BODY = {
    "submit_job": {
        "stream": GOOD,
        "asks": ["Who?"],
        "standing": False,
        "window_s": 60.0,
        "start": "0:00",
        "end": "now",
        "webhook": "",
        "drafts": False,
        "workflow": {"name": "w", "stages": {"s": {"capability": "detect_scenes", "inputs": {"media": "media"}}}},
    },
    "declare_stream": {
        "policy": "live",
        "segment_s": 5.0,
        "max_lag_s": 10.0,
        "gop_s": 2.0,
        "url": "rtsp://192.0.2.1/x",
    },
}
QUERY = {
    "stream": GOOD,
    "state": "done",
    "job": "j1",
    "after": "3",
    "policy": "durable",
    "segment_s": "2",
    "timeout_s": "1",
}
HEADERS = {
    "Accept": "application/json",
    "Content-Type": "application/json",
    "Last-Event-ID": "3",
    "Origin": "http://evil.example",
    "Authorization": "Bearer x",
    "traceparent": "00-7d817d93b5b266595274aacb25b6d1d6-e340361a9fd1aaa7-01",
    "Host": "127.0.0.1",
    "Content-Length": "5",
    "Transfer-Encoding": "chunked",
    "Expect": "100-continue",
    "Connection": "close",
    "Upgrade": "h2c",
    "Range": "bytes=0-1",
    "Content-Encoding": "gzip",
    "Cookie": "a=b",
}
TYPES = (
    "application/json",
    "application/msgpack",
    "text/plain",
    "multipart/form-data; boundary=x",
    "application/x-www-form-urlencoded",
    "x",
    "",
)


class Http:
    """Requests. An input is the bytes that are sent."""

    name = "http"
    max_s = 150.0  # a node has to come up; each answer is waited for ANSWER_S
    batch = 100

    def __init__(self, seed: int, clip: bytes) -> None:
        self._seed = seed
        self._clip = clip
        self._node: Node | None = None
        self._num_checks = 0

    def case(self, index: int) -> Case:
        chance = Random(f"{self._seed} http {index}")
        if chance.random() < 0.2:
            return Case("raw", _raw(chance))
        method, path, name, query = chance.choice(_OPERATIONS)
        return Case(name, self._request(chance, method, path, name, query))

    def open(self) -> None:
        self._node = Node(self._clip)
        document = msgspec.json.decode(self._node.http.get("/openapi.json").content)
        if (found := _operations(document)) != _OPERATIONS:
            raise RuntimeError(f"the OpenAPI document has other operations than are thrown at: {found}")

    def throw(self, case: Case) -> Outcome:
        assert self._node is not None
        response = self._sent(case.data)
        head, _, body = response.partition(b"\r\n\r\n")
        if not head:
            return "refused"
        words = head.split(b" ", 2)
        if len(words) < 2 or not words[1].isdigit():
            raise Defect("status", f"no status: {head[:100]!r}")
        status = int(words[1])
        if status >= 500 and status != 503 and not (status == LATE and b"timeout_s" in case.data):
            raise Defect("status", f"{status} {body[:300]!r}; {self._node.complaint()}")
        if status >= 400 and b"problem+json" in head.lower() and body.startswith(b"{"):
            one_line(str(json.JSONDecoder().raw_decode(body.decode())[0]["detail"]))  # more may follow
        return "refused" if status >= 400 else "accepted"

    def check(self) -> None:
        assert self._node is not None
        self._node.check()
        self._num_checks += 1
        if self._num_checks % (CLEAN // self.batch) == 0:
            self._node.tidy()

    def close(self) -> None:
        if self._node is not None:
            self._node.close()

    # --- how -----------------------------------------------------------------------------------------------------

    def _sent(self, data: bytes) -> bytes:
        """What is answered: all of it, or of what does not end its beginning. The sender says that it has no more."""
        assert self._node is not None
        place = urlsplit(self._node.url)
        parts = bytearray()
        with socket.create_connection((place.hostname, place.port or 0), timeout=ANSWER_S) as connection:
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                while len(parts) < MAX_RESPONSE:
                    part = connection.recv(1 << 16)
                    parts += part
                    if not part or b"text/event-stream" in parts:
                        break
            except TimeoutError as error:
                if not parts and not _may_wait(data):
                    raise Ruined("hang", f"neither answer nor end within {ANSWER_S:g} s") from error
            except OSError:
                pass  # it was cut off, as what is no request may be
        return bytes(parts)

    def _request(self, chance: Random, method: str, path: str, name: str, query: list[str]) -> bytes:
        """A request to an operation, with one to three of its parts spoilt."""
        spoilt = {
            chance.choice(("path", "query", "headers", "body", "method")) for _ in range(chance.choice((1, 1, 2, 3)))
        }
        filled = (
            path.replace("{job}", "j1")
            .replace("{stream}", GOOD if method == "GET" else "s1")
            .replace("{capability}", "detect_scenes")
        )
        if "path" in spoilt:
            filled = _spoilt_path(chance, path, filled)
        asked = {key: QUERY[key] for key in query if key in QUERY and (chance.random() < 0.3 or key == "timeout_s")}
        if "query" in spoilt:
            asked[chance.choice([*query, making.text(chance, "job")])] = making.text(
                chance, chance.choice(list(QUERY.values()))
            )
        if asked:
            filled += "?" + "&".join(f"{_quoted(chance, key)}={_quoted(chance, text)}" for key, text in asked.items())
        headers = {"Host": "127.0.0.1", "Accept": "application/json"}
        body = b""
        if method in ("POST", "PUT"):
            good = GOOD_BODY.get(name)
            headers["Content-Type"] = "application/json" if good is not None else "application/octet-stream"
            body = msgspec.json.encode(good) if good is not None else b""
            if "body" in spoilt or good is None:
                body = (
                    making.as_json(chance, good)
                    if good is not None
                    else making.data(chance, self._clip[:20_000], self._clip)
                )
        if "headers" in spoilt:
            for header in chance.sample(list(HEADERS), chance.choice((1, 2))):
                headers[header] = chance.choice((HEADERS[header], making.text(chance, HEADERS[header])))
            if chance.random() < 0.3:
                headers["Content-Type"] = chance.choice(TYPES)
        if "method" in spoilt:
            method = chance.choice(METHODS)
        if method in ("DELETE", "PUT"):
            filled = filled.replace(GOOD, "s1")  # it is to stay
        return _written(method, filled, headers, body)


def _operations(document: Any) -> list[tuple[str, str, str, list[str]]]:
    """Method, path, name, and what its query may have."""
    return sorted(
        (method.upper(), path, operation["operationId"], _query_of(operation))
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if isinstance(operation, Mapping)
    )


def _query_of(operation: Mapping[str, Any]) -> list[str]:
    return sorted(each["name"] for each in operation.get("parameters", ()) if each["in"] == "query")


def _quoted(chance: Random, text: str) -> str:
    """As a query has it; now and then as it must not."""
    if chance.random() < 0.1:
        return "".join(c for c in text if c.isprintable() and c not in " \r\n")
    return quote(text.encode("utf-8", "surrogatepass"), safe="")


def _spoilt_path(chance: Random, path: str, filled: str) -> str:
    if "{" in path and chance.random() < 0.8:
        before, _, rest = path.partition("{")
        return f"{before}{_quoted(chance, making.text(chance, 'name'))[:3000]}{rest.partition('}')[2]}"
    return chance.choice(
        (
            filled + "/",
            filled.upper(),
            f"/{filled}",
            f"{filled}/..",
            f"{filled}%2f",
            "/" + "a/" * 2000,
            "*",
            f"{filled}#x",
        )
    )


def _written(method: str, target: str, headers: Mapping[str, str], body: bytes) -> bytes:
    given = dict(headers)
    if given.get("Transfer-Encoding") == "chunked":
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    elif "Content-Length" not in given and body:
        given["Content-Length"] = str(len(body))
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items())]
    return "\r\n".join(lines).encode("utf-8", "surrogatepass") + b"\r\n\r\n" + body


def _raw(chance: Random) -> bytes:
    """Bytes that are hardly a request."""
    good = _written(
        "POST", "/v1/jobs", {"Host": "127.0.0.1", "Content-Type": "application/json"}, b'{"stream": "good"}'
    )
    match chance.randrange(8):
        case 0:
            return chance.choice(making.BYTES) or b"\r\n"
        case 1:
            return b"GET / HTTP/" + chance.choice((b"0.9", b"1.0", b"2.0", b"9.9", b"x", b"")) + b"\r\n\r\n"
        case 2:
            return b"GET /" + b"a" * chance.choice((8000, 70_000, 300_000)) + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"
        case 3:
            return b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * chance.choice((150, 5000, 30_000)) + b"\r\n"
        case 4:
            length = chance.choice((b"-1", b"+5", b"5, 5", b"5, 6", b"9" * 30, b"1e3", b"0x10", b"", b" 5", b"\xb2"))
            return b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + length + b"\r\n\r\nhello"
        case 5:
            size = chance.choice((b"-1", b"f" * 17, b"g", b"", b"5;" + b"a" * 9000, b"0005", b"5 "))
            head = b"POST /v1/streams/s2/media HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            return head + size + b"\r\nhello\r\n0\r\n\r\n"
        case 6:
            return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + making.data(chance, good)
    return making.data(chance, good, good)


def _may_wait(data: bytes) -> bool:
    """Whether it asks for what may take its time: a capability, whose wait is the caller's."""
    return data.startswith(b"POST /v1/operators/")


def _described() -> Any:
    """The OpenAPI document as a node makes it."""

    def given() -> Face:
        raise NotImplementedError

    return document(HANDLERS, {"face": Provide(given, sync_to_thread=False)}, "0")


_OPERATIONS = _operations(_described())
