"""Budgets: what media may say of themselves before anything is set aside for them. A few bytes can declare pictures of
gigabytes, a thousand tracks or a rate that no sound has: that is refused by name, before a decoder believes it.
"""

from typing import Any

from streams.errors import UserError

MAX_PIXELS = 8192 * 8192  # of a picture; 8K video has half of that
MAX_RATE_HZ = 768_000
MAX_CHANNELS = 64
MAX_STREAMS = 256  # in one container
MAX_TEXTS = 32  # subtitle tracks that are taken


def decoder_options() -> dict[str, str]:
    """For a decoder, which may meet other sizes than were declared."""
    return {"max_pixels": str(MAX_PIXELS)}


def check_number(name: str, num_streams: int) -> None:
    """Raises UserError for a container of more tracks than are looked at."""
    if num_streams > MAX_STREAMS:
        raise UserError(f"{name}: holds {num_streams} tracks: give media of at most {MAX_STREAMS}")


def check_declared(name: str, context: Any) -> None:
    """Raises UserError where a track's codec context declares more than there is room for."""
    if context.type == "video":
        width, height = context.width or 0, context.height or 0
        if width * height > MAX_PIXELS:
            raise UserError(f"{name}: declares pictures of {width} x {height}: give at most {MAX_PIXELS} pixels")
    elif context.type == "audio":
        rate, channels = context.sample_rate or 0, context.layout.nb_channels if context.layout else 0
        if rate > MAX_RATE_HZ or channels > MAX_CHANNELS:
            raise UserError(
                f"{name}: declares sound of {rate} Hz in {channels} channels: give at most {MAX_RATE_HZ} Hz and "
                f"{MAX_CHANNELS} channels"
            )
