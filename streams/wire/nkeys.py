"""NKeys: the Ed25519 keys by which a NATS server knows a user without a secret ever being sent.

A key is written as base32 without padding of

    public:  type byte, 32 bytes of public key, CRC-16
    seed:    two bytes that hold "seed" and the type, 32 bytes of private seed, CRC-16

with the CRC-16 of XMODEM (polynomial 0x1021, from 0) in little endian, so that a user's public key begins with U and
its seed with SU. The server sends a nonce, which the user signs. Source: NATS ADR-14 and the nkeys specification.
"""

import base64
import binascii
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from streams.errors import UserError

_SEED = 18 << 3
_USER = 20 << 3


class UserKey:
    """A user's key."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private

    @classmethod
    def made(cls) -> "UserKey":
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def of_seed(cls, text: str) -> "UserKey":
        """Raises UserError, which does not repeat it, for what is no user's seed."""
        text = text.strip()
        try:
            raw = base64.b32decode(text + "=" * (-len(text) % 8))
        except (ValueError, binascii.Error):
            raw = b""
        head = bytes([_SEED | _USER >> 5, (_USER & 31) << 3])
        if len(raw) != 36 or raw[:2] != head or raw[34:] != _checksum(raw[:34]):
            raise UserError("that is no seed of a NATS user's nkey: it has 58 characters and begins with SU")
        return cls(Ed25519PrivateKey.from_private_bytes(raw[2:34]))

    @property
    def public(self) -> str:
        """Which the server's configuration names."""
        raw = self._private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return _written(bytes([_USER]) + raw)

    @property
    def seed(self) -> str:
        """The secret."""
        raw = self._private.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
        return _written(bytes([_SEED | _USER >> 5, (_USER & 31) << 3]) + raw)

    @property
    def signed(self) -> Callable[[str], bytes]:
        """The signature of a server's nonce, in base64."""
        return lambda nonce: base64.b64encode(self._private.sign(nonce.encode()))


def _written(raw: bytes) -> str:
    return base64.b32encode(raw + _checksum(raw)).decode().rstrip("=")


def _checksum(raw: bytes) -> bytes:
    return binascii.crc_hqx(raw, 0).to_bytes(2, "little")
