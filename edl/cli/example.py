"""What the help of each command ends with."""

from __future__ import annotations


def example(*lines: str) -> str:
    """An epilog for click that shows the lines of an example as they are."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)
