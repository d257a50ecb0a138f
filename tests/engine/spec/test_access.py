"""Which addresses a node connects to for others."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.spec.access import Access, checked_access
from streams.errors import UserError


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "64:ff9b::1.1.1.1", "::ffff:1.1.1.1"]
)
def test_public_addresses_are_open(address: str) -> None:
    assert Access().allows(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.8.8",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.5.5",
        "192.168.1.1",
        "100.64.0.1",  # carrier-grade NAT
        "169.254.169.254",  # where clouds keep credentials
        "224.0.0.1",
        "255.255.255.255",
        "240.0.0.1",
        "::1",
        "::",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fd00:ec2::254",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::169.254.169.254",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",  # 6to4 of 127.0.0.1
        "2002:a9fe:a9fe::1",
        "localhost",
        "127.1",
        "2130706433",
        "0x7f000001",
        "",
    ],
)
def test_all_others_are_closed(address: str) -> None:
    assert not Access().allows(address)


def test_networks_open_what_is_in_them_and_no_more() -> None:
    access = checked_access(Access(networks=("192.168.1.0/24", "fd00::/8")))
    assert access.allows("192.168.1.7")
    assert access.allows("::ffff:192.168.1.7")
    assert access.allows("fd12::1")
    assert access.allows("1.1.1.1")
    assert not access.allows("192.168.2.7")
    assert not access.allows("127.0.0.1")


@pytest.mark.parametrize("network", ["192.168.1.5/24", "localhost", "", "1.2.3.4/33"])
def test_what_is_no_network_is_said(network: str) -> None:
    with pytest.raises(UserError, match=r"^\[access\] networks: .*give networks such as 192.168.0.0/16"):
        checked_access(Access(networks=(network,)))


@given(st.ip_addresses(v=4))
def test_no_form_of_an_address_opens_what_another_closes(ip: ipaddress.IPv4Address) -> None:
    is_open = Access().allows(str(ip))
    number = int(ip)
    for other in (f"::ffff:{ip}", f"64:ff9b::{ip}", str(ipaddress.IPv6Address((0xFFFF << 32) | number))):
        assert Access().allows(other) is is_open
    assert not Access().allows(str(ipaddress.IPv6Address((0x2002 << 112) | (number << 80)))) or is_open
