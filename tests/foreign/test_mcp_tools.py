"""Tools of a server that the TypeScript library of the Model Context Protocol made are called like others.

Needs node, and the npm package @modelcontextprotocol/sdk 1.x: in $NODE_PATH, or else from npm.
"""

import json
from pathlib import Path

import anyio
import pytest
from npm import modules_with

from operators.control.calls import Caller
from streams.errors import Permanent

SERVER = Path(__file__).parent / "tool_server.mjs"


def test_a_tool_of_a_server_in_another_language_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = modules_with("@modelcontextprotocol/sdk", "1.", tmp_path)
    command = json.dumps(["node", str(SERVER)])
    (tmp_path / "tools.toml").write_text(
        f'[[tool]]\nname = "freight"\nmcp = {command}\nmcp_tool = "shipping"\nenv = {{ NODE_PATH = "${{MODULES}}" }}\n'
    )
    monkeypatch.setenv("PENSTOCK_TOOLS", str(tmp_path / "tools.toml"))
    monkeypatch.setenv("MODULES", modules)

    async def ship() -> None:
        caller = Caller("freight")
        with anyio.fail_after(60):
            takes = await caller.takes()
            assert takes.about == "What it costs to ship some tonnes to a harbour."
            assert await caller.call({"to": "Porto", "tonnes": 3}) == "105 dollars to Porto"
            with pytest.raises(Permanent, match="tool: freight: no ship goes to Ulm"):
                await caller.call({"to": "Ulm", "tonnes": 3})
            with pytest.raises(Permanent, match="tool: freight: tonnes: 0 is less than the minimum of 1"):
                await caller.call({"to": "Porto", "tonnes": 0})

    anyio.run(ship)
