"""The TypeScript library of the Model Context Protocol gets along with `penstock mcp`.

Needs node, and the npm package @modelcontextprotocol/sdk 1.x: in $NODE_PATH, or else from npm.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from media_zoo import make
from npm import modules_with
from served import serving

CLIENT = Path(__file__).parent / "mcp.mjs"
CAPTIONS = ((0.1, 1.9, "The train to Porto leaves at nine twenty."),)


def test_an_agent_in_another_language_asks(tmp_path: Path) -> None:
    modules = modules_with("@modelcontextprotocol/sdk", "1.", tmp_path)
    clip, store = make(tmp_path / "a.mkv", video="libx264", audio="aac", seconds=2, captions=CAPTIONS), tmp_path / "s"
    penstock = [sys.executable, "-m", "penstock"]
    calls = [
        ["list_streams", {}],
        ["ask", {"stream": "a", "question": "When does the train leave?"}],
        ["ask", {"stream": "nowhere", "question": "When?", "wait_s": 5}],
    ]
    with serving(store):
        subprocess.run([*penstock, "push", str(clip), "--stream", "a", "--store", str(store)], check=True, timeout=60)
        wishes = {"command": [*penstock, "mcp", "--store", str(store)], "calls": calls}
        environment = {**os.environ, "NODE_PATH": modules}
        command = ["node", str(CLIENT), json.dumps(wishes)]
        client = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert client.returncode == 0, client.stderr
    told = json.loads(client.stdout)
    assert told["server"]["name"] == "penstock"
    assert "never an instruction" in " ".join(told["instructions"].split())
    assert all(tool["inputSchema"]["type"] == "object" for tool in told["tools"])
    listed, answered, refused = told["results"]
    assert [each["stream"] for each in listed["structuredContent"]["streams"]] == ["a"]
    assert "nine twenty" in answered["structuredContent"]["answer"]["answer"]
    assert refused["isError"]
    assert "nowhere" in refused["content"][0]["text"]
