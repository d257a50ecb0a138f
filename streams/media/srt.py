"""SRT by the system's libsrt: the FFmpeg in PyAV's wheels is built without it.

A caller or a listener that receives in live mode; what arrives is MPEG-TS, which FFmpeg reads. The options in the URL
are those of srt-live-transmit: `mode`, `passphrase`, `pbkeylen`, `streamid`, `latency` (milliseconds).
Source: libsrt's "API functions" and "API socket options", as of version 1.4.
"""

import ctypes
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from streams.errors import Transient, UserError
from streams.media.probe import NOTHING_CAME

LIBRARIES = ("libsrt-gnutls.so.1.5", "libsrt-openssl.so.1.5", "libsrt.so.1.5", "libsrt.so.1.4", "libsrt.so")
MESSAGE_BYTES = 1456  # the largest payload of a packet in live mode
LOOK_S = 0.1  # how often it is asked whether to give up
FAILED = -1
NOTHING_YET = {6002, 6003}  # SRT_EASYNCRCV, SRT_ETIMEOUT
RCVSYN, RCVTIMEO, CONNTIMEO = 2, 14, 36
OPTIONS = {"latency": 23, "passphrase": 26, "pbkeylen": 27, "streamid": 46}
NUMBERS = {"latency", "pbkeylen"}
TAKES = {
    "latency": "milliseconds",
    "passphrase": "10 to 79 characters",
    "pbkeylen": "16, 24 or 32",
    "streamid": "up to 512 characters",
}
SUITS: Mapping[str, Callable[[str], bool]] = {
    "latency": lambda value: value.isdecimal(),
    "passphrase": lambda value: 10 <= len(value.encode()) <= 79,
    "pbkeylen": lambda value: value in ("0", "16", "24", "32"),
    "streamid": lambda value: len(value.encode()) <= 512,
}


class SrtReceiver:
    """The bytes that an SRT peer sends. Connects at the first `read`: a caller within `open_timeout_s`, a listener
    whenever somebody calls. Raises Transient where the connection fails, ends or is silent for `read_timeout_s`, and
    UserError where the URL or the machine does not suit."""

    def __init__(self, url: str, name: str, open_timeout_s: float, read_timeout_s: float) -> None:
        parts = urlsplit(url)
        self.name = name
        self._options = dict(parse_qsl(parts.query))
        self._mode = self._options.get("mode", "caller")
        self._open_timeout_s = open_timeout_s
        self._read_timeout_s = read_timeout_s
        self._socket: int | None = None
        self._listening: int | None = None
        self._given_up: str | None = None
        self._lock = threading.Lock()
        try:
            self._host, self._port = parts.hostname or "0.0.0.0", parts.port
        except ValueError:
            self._port = None
        if not self._port or self._mode not in ("caller", "listener"):
            raise UserError(f"{name}: must be srt://host:port, with mode=caller or mode=listener")
        for key, suits in SUITS.items():
            if key in self._options and not suits(self._options[key]):
                raise self._refusal(key)
        self._library = library()
        self._library.srt_close(self._new_socket())  # so that what SRT itself does not take is refused here

    def read(self, max_bytes: int = -1, /) -> bytes:
        """The next message, waiting for one."""
        if self._socket is None:
            self._socket = self._accepted() if self._mode == "listener" else self._called()
        message = ctypes.create_string_buffer(MESSAGE_BYTES)
        deadline_s = time.monotonic() + self._read_timeout_s
        while time.monotonic() < deadline_s:
            self._go_on()
            num_bytes = self._library.srt_recvmsg(self._socket, message, MESSAGE_BYTES)
            if num_bytes > 0:
                return message.raw[:num_bytes]
            if num_bytes == 0:
                return b""
            self._raise_unless_waiting("the connection ended")
        raise Transient(NOTHING_CAME)

    def give_up(self, reason: str) -> None:
        """End the connection; a read under way raises Transient."""
        with self._lock:
            self._given_up = self._given_up or reason
            for each in (self._socket, self._listening):
                if each is not None:
                    self._library.srt_close(each)
            self._listening = None

    def _called(self) -> int:
        address = self._address()
        one = self._new_socket()
        self._set(one, CONNTIMEO, round(self._open_timeout_s * 1000))
        if self._library.srt_connect(one, address, len(address)) == FAILED:
            reason = self._last_error()
            self._library.srt_close(one)
            raise Transient(f"cannot connect ({reason})")
        return self._received_by(one)

    def _accepted(self) -> int:
        address = self._address()
        listening = self._new_socket()
        self._set(listening, RCVSYN, 0)
        self._listening = listening
        if self._library.srt_bind(listening, address, len(address)) == FAILED:
            raise Transient(f"cannot listen ({self._last_error()})")
        if self._library.srt_listen(listening, 1) == FAILED:
            raise Transient(f"cannot listen ({self._last_error()})")
        while True:  # until somebody calls or this is given up
            self._go_on()
            one: int = self._library.srt_accept(listening, None, None)
            if one != FAILED:
                break
            self._raise_unless_waiting("cannot listen")
            time.sleep(LOOK_S)
        with self._lock:
            self._library.srt_close(listening)  # one sender at a time
            self._listening = None
        return self._received_by(one)

    def _received_by(self, one: int) -> int:
        """The connected socket, which waits for messages as long as we want to wait at once."""
        self._set(one, RCVSYN, 1)
        self._set(one, RCVTIMEO, round(LOOK_S * 1000))
        with self._lock:
            if self._given_up is not None:
                self._library.srt_close(one)
        self._go_on()
        return one

    def _new_socket(self) -> int:
        one: int = self._library.srt_create_socket()
        for key, value in self._options.items():
            if key in OPTIONS:
                try:
                    self._set(one, OPTIONS[key], int(value) if key in NUMBERS else value.encode())
                except ValueError as error:
                    self._library.srt_close(one)
                    raise self._refusal(key) from error
        return one

    def _refusal(self, key: str) -> UserError:
        return UserError(f"{self.name}: SRT does not take this {key}; {TAKES[key]} would do")

    def _set(self, one: int, option: int, value: int | bytes) -> None:
        data: Any = ctypes.create_string_buffer(value, len(value)) if isinstance(value, bytes) else ctypes.c_int(value)
        if self._library.srt_setsockflag(one, option, ctypes.byref(data), ctypes.sizeof(data)) == FAILED:
            raise ValueError(self._last_error())

    def _address(self) -> bytes:
        """The peer's, or our own, as the system's sockaddr."""
        try:
            found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_DGRAM)
        except OSError as error:
            raise Transient(f"no address of {self._host} is known") from error
        family, *_, place = found[0]
        packed = socket.inet_pton(family, str(place[0]).partition("%")[0])
        head = struct.pack("=H", family) + struct.pack("!H", place[1])
        return head + (packed + bytes(8) if family == socket.AF_INET else bytes(4) + packed + bytes(4))

    def _go_on(self) -> None:
        if self._given_up is not None:
            raise Transient(self._given_up)

    def _raise_unless_waiting(self, what: str) -> None:
        code = self._library.srt_getlasterror(None)
        if code not in NOTHING_YET:
            raise Transient(f"{what} ({self._last_error()})")

    def _last_error(self) -> str:
        return str(self._library.srt_getlasterror_str().decode(errors="replace")).rstrip(".")


@cache
def library() -> Any:
    """libsrt, started. Raises UserError where it is not installed."""
    for name in LIBRARIES:
        try:
            found = ctypes.CDLL(name)
        except OSError:
            continue
        found.srt_getlasterror_str.restype = ctypes.c_char_p
        found.srt_getlasterror.argtypes = [ctypes.c_void_p]
        found.srt_accept.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
        for connects in (found.srt_connect, found.srt_bind):
            connects.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
        found.srt_recvmsg.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
        found.srt_setsockflag.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
        found.srt_startup()
        found.srt_setloglevel(0)  # what goes wrong is in the errors
        return found
    raise UserError("srt: libsrt is not on this machine; install it (Debian: apt install libsrt1.5-gnutls)")
