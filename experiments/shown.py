"""Text that nobody vouches for, as a message may show it."""

from __future__ import annotations

_MOST = 800


def shown(text: object) -> str:
    """`text`, or the path that it is, in one line of at most some 800 printable characters."""
    text = str(text)
    if text.isprintable() and len(text) < _MOST:
        return text
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:_MOST])
    return text if len(text) < _MOST else f"{text[:_MOST]}..."
