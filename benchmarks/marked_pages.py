"""Pages of the documentation with a block that a program writes, between two marks."""

from __future__ import annotations


def with_block(text: str, *, start: str, end: str, block: str) -> str:
    """Return the text of a page with `block` in place of what is between its marks. AssertionError without a mark."""
    before, has_start, rest = text.partition(start)
    _, has_end, after = rest.partition(end)
    lost = [mark.strip() for mark, is_there in ((start, has_start), (end, has_end)) if not is_there]
    assert not lost, f"the page lost a mark: {', '.join(lost)}"
    return before + start + block + end + after
