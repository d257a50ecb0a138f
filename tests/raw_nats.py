"""A sender that speaks NATS by hand: what it sends, no client library would."""

import socket
from urllib.parse import urlsplit

BAD_HEADERS = b"\0\0\r\n\r\n"


def send_raw(url: str, *lines: bytes) -> None:
    """Send lines of the protocol; returns when the server has read them."""
    place = urlsplit(url)
    token = (place.username or "").encode()
    with socket.create_connection((place.hostname, place.port), timeout=10) as connection:
        answers = connection.makefile("rb")
        assert answers.readline().startswith(b"INFO")
        connection.sendall(b'CONNECT {"verbose":false,"headers":true,"protocol":0,"auth_token":"%s"}\r\n' % token)
        connection.sendall(b"".join(lines) + b"PING\r\n")
        while (answer := answers.readline()) != b"PONG\r\n":
            assert answer, "the server hung up"


def publish_line(subject: bytes, data: bytes = b"", headers: bytes = b"") -> bytes:
    """One message, whatever its parts hold."""
    if headers:
        return b"HPUB %s %d %d\r\n%s%s\r\n" % (subject, len(headers), len(headers) + len(data), headers, data)
    return b"PUB %s %d\r\n%s\r\n" % (subject, len(data), data)
