"""A client of NATS that writes the protocol itself, so that it sends what no library would."""

import socket
import time
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec
from bad_node import ANSWER_S
from bad_watch import Ruined


class Message(NamedTuple):
    subject: bytes
    block: bytes  # of headers; empty: none
    data: bytes
    asks: bool  # for an answer


class Client:
    """The NATS protocol over a socket, one question at a time."""

    def __init__(self, url: str) -> None:
        place = urlsplit(url)
        self._socket = socket.create_connection((place.hostname, place.port or 0), timeout=ANSWER_S)
        self._read = bytearray()
        self._num = 0
        options = {
            "auth_token": place.username,
            "headers": True,
            "no_responders": True,
            "verbose": False,
            "protocol": 1,
        }
        said = {**options, "lang": "bench", "version": "0", "pedantic": False}
        self._socket.sendall(b"CONNECT " + msgspec.json.encode(said) + b"\r\nSUB _INBOX.bad.* 1\r\nPING\r\n")
        if self._message(time.monotonic() + ANSWER_S, until=b"PONG") is None:
            raise Ruined("node", "the server does not answer")

    def send(self, message: Message) -> None:
        self._num += message.asks
        reply = b" _INBOX.bad.%d" % self._num if message.asks else b""
        total = len(message.block) + len(message.data)
        if message.block:
            line = b"HPUB %s%s %d %d" % (message.subject, reply, len(message.block), total)
        else:
            line = b"PUB %s%s %d" % (message.subject, reply, total)
        self._socket.sendall(line + b"\r\n" + message.block + message.data + b"\r\n")

    def answer(self, ends_s: float) -> tuple[bytes, bytes] | None:
        """To what was asked last: headers and data; None where there is none in time."""
        while (found := self._message(ends_s)) is not None:
            subject, block, data = found
            if subject == b"_INBOX.bad.%d" % self._num:
                return block, data
        return None

    def _message(self, ends_s: float, until: bytes = b"") -> tuple[bytes, bytes, bytes] | None:
        """The next message: subject, headers, data. Raises ConnectionError where the server has ended it."""
        while (line := self._line(ends_s)) is not None:
            words = line.split()
            match words[:1]:
                case [b"PING"]:
                    self._socket.sendall(b"PONG\r\n")
                case [b"-ERR"]:
                    raise ConnectionError(line.decode(errors="replace"))
                case [b"MSG"]:
                    return words[1], b"", self._bytes(int(words[-1]), ends_s)
                case [b"HMSG"]:
                    whole, of_block = self._bytes(int(words[-1]), ends_s), int(words[-2])
                    return words[1], whole[:of_block], whole[of_block:]
            if until and line == until:
                return b"", b"", b""
        return None

    def _line(self, ends_s: float) -> bytes | None:
        while b"\r\n" not in self._read:
            if not self._more(ends_s):
                return None
        line, _, rest = bytes(self._read).partition(b"\r\n")
        self._read = bytearray(rest)
        return line

    def _bytes(self, num: int, ends_s: float) -> bytes:
        while len(self._read) < num + 2:
            if not self._more(ends_s):
                raise ConnectionError("it broke off")
        found = bytes(self._read[:num])
        del self._read[: num + 2]
        return found

    def _more(self, ends_s: float) -> bool:
        left_s = ends_s - time.monotonic()
        if left_s <= 0:
            return False
        self._socket.settimeout(left_s)
        try:
            part = self._socket.recv(1 << 16)
        except TimeoutError:
            return False
        if not part:
            raise ConnectionError("the server has ended it")
        self._read += part
        return True
