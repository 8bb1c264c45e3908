"""What is shown again and again until Ctrl+C: `--watch` of the commands that list something."""

import contextlib
import io
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from cli import rendering
from cli.client import Client
from cli.failures import Away
from cli.options import connect

#: How often what is watched is asked for again, in seconds.
EVERY_S = 2.0
#: The terminal's second screen, so that what was there before comes back at the end.
_ENTER, _LEAVE, _HOME, _REST_OF_LINE, _REST = (
    "\x1b[?1049h\x1b[?25l",
    "\x1b[?25h\x1b[?1049l",
    "\x1b[H",
    "\x1b[K",
    "\x1b[J",
)


def show(
    url: str | None,
    api_key: str | None,
    ask: Callable[[Client], Any],
    draw: Callable[[Any], None],
    *,
    as_json: bool,
    watch: bool = False,
) -> None:
    """Draw what `ask` returns, or print it as JSON; with `watch`, again and again until Ctrl+C. Raises Failed."""
    with connect(url, api_key) as client:

        def once() -> None:
            answer = ask(client)
            if as_json:
                rendering.write_json(answer)
            else:
                draw(answer)

        if watch:
            client.on_silence = None  # what it says would land in the picture
            repeated(once)
        else:
            once()


def repeated(draw: Callable[[], None], pause: Callable[[float], None] = time.sleep) -> None:
    """Call `draw` until Ctrl+C: on a terminal in place, elsewhere one below the other whenever it differs.

    A server that stays away for a while is waited for. Raises Failed for every other failure.
    """
    with contextlib.suppress(KeyboardInterrupt), _screen() as put:
        while True:
            try:
                put(_captured(draw))
            except Away as error:
                put(f"{error} Trying again.\n")
            pause(EVERY_S)


@contextlib.contextmanager
def _screen() -> Iterator[Callable[[str], None]]:
    out, before = sys.stdout, [""]
    if not out.isatty():

        def tell(text: str) -> None:
            if text != before[0]:
                out.write(text)
                out.flush()
            before[0] = text

        yield tell
        return

    def put(text: str) -> None:
        lines = text.rstrip("\n").split("\n")[: shutil.get_terminal_size().lines - 1]
        out.write(_HOME + "".join(f"{line}{_REST_OF_LINE}\n" for line in lines) + _REST)
        out.flush()
        before[0] = text

    out.write(_ENTER)
    try:
        yield put
    finally:
        out.write(_LEAVE + before[0])  # the last that was seen stays
        out.flush()


class _Page(io.StringIO):
    """What a drawing prints, which may have colours where the output has."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


def _captured(draw: Callable[[], None]) -> str:
    page = _Page(terminal=sys.stdout.isatty())
    with contextlib.redirect_stdout(page), contextlib.redirect_stderr(page):
        draw()
    return page.getvalue()
