"""From any source to segments."""
