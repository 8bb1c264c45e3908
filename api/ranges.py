"""Conditional and partial reads (RFC 9110, sections 13 and 14): which bytes a request is for."""

import re

from falcon.asgi import Request, Response

from api.errors import RangeNotSatisfiable

_ONE_RANGE = re.compile(r"bytes\s*=\s*(\d{0,19})\s*-\s*(\d{0,19})\s*", re.IGNORECASE | re.ASCII)


def unchanged(req: Request, etag: str) -> bool:
    """Tell whether the caller already holds the resource whose strong tag is `etag`, given without quotes."""
    return any(held in {"*", etag} for held in req.if_none_match or ())


def span(req: Request, resp: Response, size_bytes: int, etag: str) -> tuple[int, int] | None:
    """Return the first and last byte asked for, or None for the whole; writes status and Content-Range.

    What is no single byte range is ignored, as the RFC has it: several ranges get the whole. Raises
    RangeNotSatisfiable.
    """
    resp.set_header("Accept-Ranges", "bytes")
    asked = _ONE_RANGE.fullmatch(req.get_header("Range") or "")
    if asked is None or not _still_valid(req.get_header("If-Range"), etag):
        return None
    first, last = asked.groups()
    if not first and not last:
        return None
    if first and last and int(last) < int(first):
        return None
    if first:
        begin, end = int(first), min(int(last or size_bytes - 1), size_bytes - 1)
    else:
        begin, end = max(0, size_bytes - int(last)), size_bytes - 1
    if begin >= size_bytes or begin > end:
        resp.set_header("Content-Range", f"bytes */{size_bytes}")
        raise RangeNotSatisfiable(f"The range asks for bytes beyond the {size_bytes} there are.")
    resp.status = 206
    resp.set_header("Content-Range", f"bytes {begin}-{end}/{size_bytes}")
    return begin, end


def _still_valid(if_range: str | None, etag: str) -> bool:
    """Tell whether If-Range permits a part; a weak tag or a date never does: our tags are strong."""
    return if_range is None or if_range.strip() == f'"{etag}"'
