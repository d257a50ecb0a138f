"""HTTP services as tools: the arguments are POSTed as JSON, and JSON comes back, or text."""

from collections.abc import Mapping
from typing import Any

import msgspec

from operators import owned
from operators.control.tools import Tool
from operators.failures import failure
from operators.posting import Answered, posted
from streams.decoding import from_json
from streams.errors import Malformed, UserError


async def called(tool: Tool, arguments: Mapping[str, Any], max_bytes: int) -> Any:
    """What it answers. Raises Transient or Permanent, named, with neither its address nor its key."""
    try:
        key = owned.bearer(tool.key)
    except UserError as error:
        raise failure("upstream", f"{tool.name}: its key: {error}") from error
    answered = await posted(
        tool.name,
        tool.url,
        headers={"Content-Type": "application/json", "Accept": "application/json", **key},
        timeout_s=tool.timeout_s,
        max_bytes=max_bytes,
        refused="tool",
        harmless=tool.without_secrets,
        content=msgspec.json.encode(arguments),
    )
    return _read(tool, answered)


def _read(tool: Tool, answered: Answered) -> Any:
    if not answered.body.strip():
        return None
    if answered.kind in ("text/plain", "text/markdown"):
        return answered.body.decode(errors="replace")
    try:
        return from_json(answered.body, Any)
    except Malformed as error:
        raise failure("tool", f"{tool.name} answers with what is no JSON: {error}") from error
