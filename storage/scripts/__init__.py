"""The Lua scripts: every change of a record is one of them, so no crash falls between two halves of it.

A line `-- include NAME` in a script stands for the text of `_NAME.lua` beside it, so that a rule which several
scripts need is written once. Keys are built inside the scripts, which rules out Redis Cluster and nothing else.
"""

import hashlib
import re
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent


#: What goes before the name of a script that carries its caller's admission.
CARRYING = "carrying "


@cache
def source(name: str) -> str:
    """Return the full Lua text of the script called `name`. Raises FileNotFoundError.

    `carrying NAME` is the script NAME behind the check of who asks for it (_carried.lua).
    """
    if name.startswith(CARRYING):
        step = source(name.removeprefix(CARRYING))
        return f"local function step(KEYS, ARGV)\n{step}\nend\n{_expanded('-- include carried')}"
    return _expanded((_FOLDER / f"{name}.lua").read_text())


def _expanded(text: str) -> str:
    included: set[str] = set()

    def paste(match: re.Match[str]) -> str:
        part = match.group(1)
        if part in included:
            return ""
        included.add(part)
        return expand((_FOLDER / f"_{part}.lua").read_text())

    def expand(text: str) -> str:
        return re.sub(r"^-- include (\w+)$", paste, text, flags=re.MULTILINE)

    return expand(text)


@cache
def sha(name: str) -> str:
    """Return the digest by which Redis knows the script called `name`."""
    return hashlib.sha1(source(name).encode(), usedforsecurity=False).hexdigest()


@cache
def names() -> tuple[str, ...]:
    """Return the names of all scripts, without the parts that others include."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.lua") if not path.stem.startswith("_")))
