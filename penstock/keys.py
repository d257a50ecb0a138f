"""Keys: who may do what on a NATS cluster of one's own, as configurations for its servers and a file for each role.

Everything of Penstock is in one account, so tenants are accounts: make keys again, in another folder, for another. A
role's key is an nkey, of which servers know the public part only. Each role hears answers to its own requests only, on
an inbox of its own name (the clients that are not ours share `_INBOX`): what is read from the registry, cameras'
passwords among it, comes as an answer. Servers have certificates of an authority that is made here, and show them to
each other as well; its key is needed again only to make more.

| role | may |
|---|---|
| node | everything that `penstock serve` does |
| worker | what `penstock worker` does: the same, but it deletes none of the streams that hold the records |
| admin | everything in the account, that is, what the command line can ask for |
| publisher | send media to `penstock.ingest.<stream>` |
| subscriber | hear and read answers, drafts, gaps, signals, decisions and events |
| client | both of these, submit jobs and ask |
"""

import datetime
import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from engine.run.registry import BUCKETS
from streams.errors import UserError
from streams.wire import retention
from streams.wire.identity import INBOX
from streams.wire.nkeys import UserKey

PORT, ROUTE_PORT = 4222, 6222
MAX_SERVERS = 15
AUTHORITY_DAYS = 3650
CLOCK_SKEW = datetime.timedelta(hours=1)
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*")

HELD = (*retention.names(), *(f"KV_{bucket}" for bucket in BUCKETS))
FOLLOWED = ("PENSTOCK_ANSWERS", "PENSTOCK_GAPS")
HEARD = tuple(f"penstock.{kind}.>" for kind in ("answers", "partials", "gaps", "signals", "decisions", "events"))
ASKED = (*(f"penstock.{kind}.>" for kind in ("jobs", "streams", "nodes", "ask", "operators")), "penstock.search")
READ = tuple(
    subject
    for stream in FOLLOWED
    for subject in (
        f"$JS.API.STREAM.INFO.{stream}",
        f"$JS.API.STREAM.MSG.GET.{stream}",
        f"$JS.API.DIRECT.GET.{stream}",
        f"$JS.API.DIRECT.GET.{stream}.>",
    )
)
JOBS_READ = tuple(f"$JS.API.{verb}.KV_penstock_jobs" for verb in ("STREAM.MSG.GET", "DIRECT.GET"))
SHARED = "_INBOX"


class Role(NamedTuple):
    """What somebody may publish and subscribe to. `inbox`: the first token of what answers come on."""

    inbox: str
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    deny_publish: tuple[str, ...] = ()


def _inbox(role: str) -> str:
    return f"_INBOX_{role}"


_OWN = ("node", "worker", "admin", "client")
_ANSWER_TO = tuple(f"{inbox}.>" for inbox in (SHARED, *map(_inbox, _OWN)))
_ENGINE = ("penstock.>", "PENSTOCK_MAKING", "$JS.API.>", "$JS.ACK.>", "$KV.>", "$SRV.>", *_ANSWER_TO)
_ENGINE_HEARS = ("penstock.>", "$KV.>", "$SRV.>", "$JS.EVENT.ADVISORY.>")

ROLES: Mapping[str, Role] = {
    "node": Role(_inbox("node"), _ENGINE, (*_ENGINE_HEARS, f"{_inbox('node')}.>")),
    "worker": Role(
        _inbox("worker"),
        _ENGINE,
        (*_ENGINE_HEARS, f"{_inbox('worker')}.>"),
        tuple(f"$JS.API.STREAM.{verb}.{name}" for verb in ("DELETE", "RESTORE") for name in HELD),
    ),
    "admin": Role(_inbox("admin"), (">",), (">",)),
    "publisher": Role(SHARED, ("penstock.ingest.*",), (f"{SHARED}.>",)),
    "subscriber": Role(SHARED, READ, (*HEARD, f"{SHARED}.>")),
    "client": Role(
        _inbox("client"),
        (*ASKED, "penstock.ingest.*", *READ, *JOBS_READ, "$JS.API.STREAM.INFO.*", *_ANSWER_TO[:3], "$SRV.>"),
        (*HEARD, "$KV.penstock_jobs.>", f"{_inbox('client')}.>"),
    ),
}


def make_keys(folder: Path, servers: Sequence[str], *, store: str = "/data", days: int = 730) -> list[Path]:
    """Write a configuration for each server, its certificate, and a key for each role; what was written. `servers` are
    the names or addresses by which clients and the other servers reach them. Raises UserError where there are keys
    already, or a name is none."""
    checked = _checked(servers)
    if not 1 <= days <= AUTHORITY_DAYS:
        raise UserError(f"--days {days}: give from 1 to {AUTHORITY_DAYS}")
    if any(character in store for character in '"\\\n') or not store.isprintable():
        raise UserError("--nats-store: give a folder's path without quotes")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: name a new folder, or take away what is there")
    keys = {role: UserKey.made() for role in ROLES}
    authority = _Authority(days)
    users = "\n".join(_user(keys[role], rights, role) for role, rights in ROLES.items())
    files: dict[str, tuple[str | bytes, int]] = {
        "ca.key": (authority.secret, 0o600),
        "tls/ca.pem": (authority.certificate, 0o644),
    }
    for name in checked:
        certificate, secret = authority.issued(name)
        files |= {
            f"tls/{name}.pem": (certificate, 0o644),
            f"tls/{name}.key": (secret, 0o600),
            f"{name}.conf": (_configuration(name, checked, users, store), 0o644),
        }
    for role, key in keys.items():
        text = f"# Penstock: the key of role {role}. Whoever has it may do what that role may.\n"
        files[f"{role}.nk"] = (f"{text}{INBOX} {ROLES[role].inbox}\n{key.seed}\n", 0o600)
    return _written(folder, files)


def _checked(servers: Sequence[str]) -> list[str]:
    names = [name.strip() for name in servers]
    for name in names:
        if not (_NAME.fullmatch(name) or _address(name)):
            raise UserError(f"{name!r} is no name or address of a server: such as nats-1 or 10.0.0.7")
    if not 1 <= len(names) <= MAX_SERVERS or len(set(names)) < len(names):
        raise UserError(
            f"{len(names)} servers: name from 1 to {MAX_SERVERS}, each once; three make a cluster that holds"
        )
    return names


def _address(name: str) -> ipaddress.IPv4Address | None:
    try:
        return ipaddress.IPv4Address(name)
    except ValueError:
        return None


def _written(folder: Path, files: Mapping[str, tuple[str | bytes, int]]) -> list[Path]:
    written = []
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / "tls").mkdir(mode=0o755)
        for name, (content, mode) in files.items():
            data = content.encode() if isinstance(content, str) else content
            with os.fdopen(os.open(folder / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode), "wb") as file:
                file.write(data)
            written.append(folder / name)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from error
    return written


# --- configurations ---------------------------------------------------------------------------------------------------

CONFIGURATION = """\
# {name}, of the servers of Penstock. Written by `penstock keys`; start it in this folder:
#   nats-server -c {name}.conf
server_name: "{name}"
port: {port}
max_payload: 8MB
write_deadline: "10s"
ping_interval: "5s" # whoever answers two of these not, frozen or cut off, is let go: requests go to others
ping_max: 2
jetstream {{
  store_dir: "{store}"
  sync_interval: "10s"
}}
tls {{
  cert_file: "tls/{name}.pem"
  key_file: "tls/{name}.key"
  timeout: 5
}}
{cluster}accounts {{
  PENSTOCK {{
    jetstream: enabled
    users: [
{users}
    ]
  }}
  SYS {{}}
}}
system_account: SYS
"""

CLUSTER = """\
cluster {{
  name: penstock
  port: {port}
  no_advertise: true # clients name the servers themselves, as their certificates do
  tls {{
    cert_file: "tls/{name}.pem"
    key_file: "tls/{name}.key"
    ca_file: "tls/ca.pem"
    verify: true # a server shows that it is one of ours
    timeout: 5
  }}
  routes: [
{routes}
  ]
}}
"""


def _configuration(name: str, servers: Sequence[str], users: str, store: str) -> str:
    cluster = ""
    if len(servers) > 1:
        routes = "\n".join(f'    "tls://{each}:{ROUTE_PORT}"' for each in servers)
        cluster = CLUSTER.format(port=ROUTE_PORT, name=name, routes=routes)
    return CONFIGURATION.format(name=name, port=PORT, store=store, cluster=cluster, users=users)


def _user(key: UserKey, role: Role, name: str) -> str:
    allowed, denied = _list(role.publish), _list(role.deny_publish)
    publish = f"{{ allow: {allowed}, deny: {denied} }}" if role.deny_publish else f"{{ allow: {allowed} }}"
    return (
        f"      {{ # {name}\n        nkey: {key.public}\n        permissions: {{\n          publish: {publish}\n"
        f"          subscribe: {{ allow: {_list(role.subscribe)} }}\n        }}\n      }}"
    )


def _list(subjects: Sequence[str]) -> str:
    return "[" + ", ".join(f'"{subject}"' for subject in subjects) + "]"


# --- certificates -----------------------------------------------------------------------------------------------------


class _Authority:
    """Made once; it vouches for servers."""

    def __init__(self, days: int) -> None:
        self._days = days
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Penstock NATS authority")])
        self._certificate = (
            self._begun(self._name, self._key.public_key(), AUTHORITY_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def certificate(self) -> bytes:
        return self._certificate.public_bytes(Encoding.PEM)

    @property
    def secret(self) -> bytes:
        return _pem(self._key)

    def issued(self, server: str) -> tuple[bytes, bytes]:
        """A server's certificate and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        address = _address(server)
        at = x509.IPAddress(address) if address else x509.DNSName(server)
        names = {at, x509.DNSName("localhost"), x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))}
        both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]  # to clients, and to other servers
        certificate = (
            self._begun(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, server[:64])]), key.public_key(), self._days)
            .add_extension(x509.SubjectAlternativeName(sorted(names, key=str)), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(both), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(Encoding.PEM), _pem(key)

    def _begun(self, name: x509.Name, key: ec.EllipticCurvePublicKey, days: int) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - CLOCK_SKEW)
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
