"""How a command says how far it is: a line `HOSTLER_PROGRESS=45` or `::progress 45` in what it prints."""

import re

_LINE = re.compile(rb"^[ \t]*(?:HOSTLER_PROGRESS=|::progress[ \t]+)(\d{1,3})%?[ \t]*\r?$", re.MULTILINE)
#: What must be in a piece of output for the pattern to be tried; most output is not about progress.
_MARKS = (b"HOSTLER_PROGRESS=", b"::progress")


def last(output: bytes) -> int | None:
    """Return the last progress that `output` states, 0 to 100 percent; None where it states none."""
    if not any(mark in output for mark in _MARKS):
        return None
    percents = [int(found) for found in _LINE.findall(output)]
    return min(100, percents[-1]) if percents else None
