"""Access: what a node opens for others. Pure.

A node reads streams and sends answers where its clients say. What one can make it open is what its user allows in
`[access]` of penstock.toml: by default no file and no device of the machine, no port to listen on, and only public
addresses, for what is on loopback, on the link and in private networks is often trusted there. Addresses that carry
another one in them (IPv4 in IPv6, 6to4, Teredo, NAT64) are judged by that as well.
"""

import ipaddress
from typing import Any

import msgspec

from streams.errors import UserError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
HOW = "name it under [access] in the penstock.toml of the node"


class Access(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What clients may have a node open. `paths`: folders with all that is in them. `networks`: addresses beside the
    public ones, such as 192.168.0.0/16. `listen`: whether a source may call the node, at a port that the client
    names."""

    paths: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    devices: bool = False
    listen: bool = False

    def allows(self, address: str) -> bool:
        """Whether a connection may be made to this IP address."""
        try:
            ip = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        networks = [ipaddress.ip_network(network) for network in self.networks]
        return all(
            (one.is_global and not one.is_multicast and not one.is_reserved)
            or any(one.version == network.version and one in network for network in networks)
            for one in _all_in(ip)
        )


def checked_access(access: Access) -> Access:
    """Raises UserError where a network is none."""
    for network in access.networks:
        try:
            ipaddress.ip_network(network)
        except ValueError as error:
            raise UserError(f"[access] networks: {error}; give networks such as 192.168.0.0/16 or ::1/128") from error
    return access


def _all_in(ip: Address) -> list[Address]:
    """The address that counts, or each of several that do."""
    if isinstance(ip, ipaddress.IPv4Address):
        return [ip]
    if ip.ipv4_mapped is not None:
        return [ip.ipv4_mapped]
    if ip in _NAT64:
        return [ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)]
    carried: list[Any] = [ip.sixtofour, *(ip.teredo or ())]
    return [ip, *(each for each in carried if each is not None)]
