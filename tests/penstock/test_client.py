"""The Python client: what goes wrong inside `async with` comes out as it is."""

import pytest

import penstock

pytestmark = pytest.mark.anyio


async def test_an_error_of_ours_can_be_caught_as_what_it_is(nats_url: str) -> None:
    with pytest.raises(penstock.LinkError, match=r"nobody serves penstock\.nodes\.list: start `penstock serve`"):
        async with penstock.connect(nats_url) as client:
            await client.nodes()


async def test_the_user_s_own_error_comes_out_as_it_is(nats_url: str) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with penstock.connect(nats_url):
            raise KeyError("mine")
