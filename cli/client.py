"""Hostler's API as a client sees it: one server, one identity, patience with what passes by itself."""

import contextlib
import ssl
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import quote, urlsplit

import httpx
import orjson
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from cli.contexts import TOKEN, Contexts, Server
from cli.failures import Away, Failed
from settings import __version__, is_loopback

T = TypeVar("T")

TIMEOUT = httpx.Timeout(60, connect=5)
ATTEMPTS = 5
#: No attempt begins later than this, unless the server has named the time: somebody waits, and hears nothing meanwhile.
ENOUGH_S = 8.0
LONGEST_PAUSE_S = 30.0
#: A call that is not answered after so long is told of, once.
TOLD_AFTER_S = 6.0
#: A log that is followed falls silent for at most so long: the server sends comments in between.
SILENCE_S = 45.0
#: Somebody who asks for a log learns after so long that nobody answers.
FIRST_WITHIN_S = 5.0
#: A lost connection to a log is taken up again for so long.
RECONNECT_WITHIN_S = 120.0
PIECE_BYTES = 64 * 1024
#: What to try where the server refuses, and where what is asked for is not there.
HINTS = {403: "hostler whoami", 503: "hostler health"}
LISTS = (
    ("/api/jobs/quarantine", "hostler quarantine list"),
    ("/api/jobs", "hostler jobs list"),
    ("/api/schedules", "hostler schedules list"),
    ("/api/files", "hostler files ls"),
    ("/api/apps/", "hostler apps list"),
    ("/api/apps", "hostler products list"),  # what is to be installed
    ("/api/backup-jobs", "hostler backup list"),
    ("/api/releases", "hostler products list"),
    ("/api/workers", "hostler workers list"),
    ("/api/nodes", "hostler nodes list"),
    ("/api/users", "hostler users list"),
    ("/api/keys", "hostler keys list"),
)
#: So many fields are named that the server refuses, besides the one that its message is about.
MOST_PROBLEMS = 3
_PASSING_STATUS = {429, 502, 503, 504}


class _Passing(Exception):
    """An answer that may be another one in a moment."""

    def __init__(self, answer: httpx.Response) -> None:
        super().__init__(answer.status_code)
        self.answer = answer
        after = answer.headers.get("Retry-After", "")
        self.retry_after_s = float(after) if after.isdigit() else 0.0


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a stream: its name, and its data read as JSON."""

    name: str
    data: dict[str, Any]


@dataclass
class Client:
    """Calls a server. Close it, or use it with `with`.

    What may be repeated without harm is repeated when the connection is lost or the server is busy; everything
    that does not succeed ends as Failed.
    """

    server: Server
    contexts: Contexts | None = None
    transport: httpx.BaseTransport | None = None
    pause: Callable[[float], None] = time.sleep
    patience_s: float | None = None  #: for who would rather have no answer than wait for one
    #: Told, in a thread of its own, that an answer takes long.
    on_silence: Callable[[str], None] | None = None
    _http: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self._http = anonymous(self.server.url, transport=self.transport)
        if self.patience_s is not None:
            self._http.timeout = httpx.Timeout(self.patience_s)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    # Calls

    def get(self, path: str, **query: Any) -> Any:
        """Return the JSON at `path`."""
        return self.call("GET", path, query=query)

    def call(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        repeatable: bool | None = None,
    ) -> Any:
        """Return the JSON that `method` on `path` answers. `repeatable` defaults to what the method promises."""
        asked: dict[str, Any] = {
            "headers": dict(headers or {}),
            "params": {name: value for name, value in (query or {}).items() if value is not None},
        }
        if body is not None:
            asked["content"] = orjson.dumps(body)
            asked["headers"]["Content-Type"] = "application/json"
        again = method in {"GET", "HEAD", "DELETE", "PUT"} if repeatable is None else repeatable
        with self._telling_of_silence():
            answer = self._patiently(lambda: self._http.request(method, path, **self._as_us(asked)), again)
        return read_json(answer)

    def upload(self, path: Path, *, filename: str, on_progress: Callable[[int], None]) -> dict[str, Any]:
        """Send a file in pieces, telling `on_progress` how many bytes have left, and return what the server says."""

        def send() -> httpx.Response:
            with path.open("rb") as file:
                files = {"file": (filename, _Watched(file, on_progress), "application/octet-stream")}
                return self._http.post("/api/files/upload", **self._as_us({"files": files}))

        return dict(read_json(self._patiently(send, repeatable=True)))

    def put_directly(
        self, path: Path, *, filename: str, on_progress: Callable[[int], None]
    ) -> dict[str, Any]:
        """Send a file to the object store by a URL that the server signs, and return what the server says of it."""
        body = {"filename": filename, "size": path.stat().st_size}
        place = self.call("POST", "/api/files/presign", body=body)

        def send() -> httpx.Response:
            with path.open("rb") as file:
                watched = _Watched(file, on_progress)
                pieces = iter(partial(watched.read, PIECE_BYTES), b"")
                return httpx.request(
                    place["method"],
                    place["uploadUrl"],
                    content=pieces,
                    headers=place["headers"],
                    timeout=TIMEOUT,
                )

        answer = self._patiently(send, repeatable=True)
        put_before = answer.status_code == httpx.codes.PRECONDITION_FAILED  # and the answer was lost
        if not answer.is_success and not put_before:
            store = urlsplit(str(answer.request.url)).netloc
            raise Failed(
                f"The object store at {store} answered {answer.status_code}.",
                hint="the same without --direct",
            )
        return dict(self.call("POST", f"/api/files/{segment(place['fileId'])}/complete", repeatable=True))

    def download(self, path: str, target: BinaryIO, *, on_progress: Callable[[int, int], None]) -> None:
        """Write what is at `path` into the empty file `target`; `on_progress` hears bytes done and bytes in all."""

        def receive() -> httpx.Response:
            target.seek(0)
            target.truncate()
            with self._http.stream("GET", path, **self._as_us({})) as answer:
                if not answer.is_success:
                    answer.read()
                    return answer
                total, done = int(answer.headers.get("Content-Length", 0)), 0
                for chunk in answer.iter_bytes():
                    target.write(chunk)
                    done += len(chunk)
                    on_progress(done, total)
                return answer

        _succeeded(self._patiently(receive, repeatable=True))

    def follow(self, path: str, *, on_loss: Callable[[], None]) -> Generator[Event, None, None]:
        """Yield the events at `path` for as long as somebody asks for more, through losses of the connection.

        `on_loss` is told of each loss. Raises Failed when the connection stays away.
        """
        last_id: str | None = None
        deadline = time.monotonic() + FIRST_WITHIN_S
        lost = False
        while True:
            pause_s = 1.0
            try:
                for seen, event in self._events(path, last_id):
                    last_id = seen
                    deadline, lost = time.monotonic() + RECONNECT_WITHIN_S, False
                    if event is not None:
                        yield event
            except _Passing as error:
                if time.monotonic() > deadline:
                    _succeeded(error.answer)
                pause_s = max(pause_s, min(error.retry_after_s, LONGEST_PAUSE_S))
            except httpx.TransportError as error:
                if time.monotonic() > deadline:
                    raise self._away(error) from error
            if not lost:
                on_loss()
            lost = True
            self.pause(pause_s)

    def _events(self, path: str, last_id: str | None) -> Iterator[tuple[str | None, Event | None]]:
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if last_id is not None:
            headers["Last-Event-ID"] = last_id
        with contextlib.ExitStack() as opened:

            def open_stream() -> httpx.Response:
                timeout = httpx.Timeout(60, connect=5, read=SILENCE_S)
                asked = self._as_us({"headers": headers, "timeout": timeout})
                answer = opened.enter_context(self._http.stream("GET", path, **asked))
                if not answer.is_success:
                    answer.read()
                return answer

            answer = _succeeded(self._once(open_stream))
            yield last_id, None
            yield from parse_events(answer, last_id)

    # Inside

    def _as_us(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {**asked, "headers": {**asked.get("headers", {}), **self.server.headers()}}

    def _telling_of_silence(self) -> AbstractContextManager[None]:
        if self.on_silence is None:
            return contextlib.nullcontext()
        told = f"{self.server.url} has not answered yet; waiting."
        return running(threading.Timer(TOLD_AFTER_S, self.on_silence, [told]))

    def _once(self, send: Callable[[], httpx.Response]) -> httpx.Response:
        answer = send()
        if answer.status_code == 401 and self._renewed():
            answer = send()
        if answer.status_code == 401 and self.server.given_by:
            _succeeded(answer, instead_of=self.server.given_by)
        if answer.status_code in _PASSING_STATUS:
            raise _Passing(answer)
        return answer

    def _patiently(self, send: Callable[[], httpx.Response], repeatable: bool) -> httpx.Response:
        """Send, again where that is harmless and may help. Raises Failed when there is no answer."""
        began_s = time.monotonic()

        def may_help(error: BaseException) -> bool:
            late = time.monotonic() - began_s > ENOUGH_S
            if isinstance(error, _Passing):
                undone = error.answer.status_code == 429  # says that nothing was done, and when to come again
                return error.retry_after_s <= LONGEST_PAUSE_S and (undone or (repeatable and not late))
            if late:
                return False
            if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
                return True
            return repeatable and isinstance(error, httpx.TransportError)

        most = ATTEMPTS if self.patience_s is None else 1
        retrying = Retrying(
            stop=stop_after_attempt(most), wait=_wait, retry=retry_if_exception(may_help),
            sleep=self.pause, reraise=True,
        )  # fmt: skip
        try:
            return retrying(self._once, send)
        except _Passing as error:
            return error.answer
        except httpx.TransportError as error:
            raise self._away(error) from error

    def _renewed(self) -> bool:
        """Trade an expired session for a new one; a token is taken once, so two commands must not both try."""
        if self.contexts is None or self.server.context is None or self.server.kind != TOKEN:
            return False
        with self.contexts.changing() as known:
            saved = known["contexts"].get(self.server.context)
            if saved is None or saved["url"] != self.server.url:
                return False
            if saved["secret"] == self.server.secret:
                answer = self._http.post("/api/auth/refresh", headers=self.server.headers())
                if not answer.is_success:
                    return False
                saved["secret"] = answer.json()["token"]
            self.server = Server(url=self.server.url, secret=saved["secret"], context=self.server.context)
        return True

    def _away(self, error: httpx.TransportError) -> Away:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            message = f"Nothing answers at {self.server.url}"
        elif isinstance(error, httpx.TimeoutException):
            message = f"{self.server.url} did not answer in time"
        else:
            message = f"The connection to {self.server.url} was lost"
        local = is_local(self.server.url)
        return Away(f"{message}.", hint="hostler up" if local else f"hostler health --url {self.server.url}")


class _Watched:
    """A file that tells how far it has been read; httpx sends it in pieces."""

    def __init__(self, file: BinaryIO, on_progress: Callable[[int], None]) -> None:
        self._file, self._on_progress = file, on_progress

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._on_progress(self._file.tell())
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def fileno(self) -> int:
        return self._file.fileno()


def _tls(url: str) -> ssl.SSLContext:
    """Return what certificates are checked with; without TLS nobody's, for reading the authorities takes a while."""
    return (
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if url.startswith("http://") else httpx.create_ssl_context()
    )


def anonymous(url: str, *, transport: httpx.BaseTransport | None = None) -> httpx.Client:
    """Return a client for `url` that says nothing of who is asking; proxies are not asked for this machine."""
    return httpx.Client(
        base_url=url,
        transport=transport,
        timeout=TIMEOUT,
        verify=_tls(url),
        trust_env=not is_local(url),
        headers={"User-Agent": f"hostler/{__version__}", "Accept": "application/json"},
    )


def ask_openly(
    url: str, method: str, path: str, body: Any = None, *, transport: httpx.BaseTransport | None = None
) -> httpx.Response:
    """Return what a server answers to somebody whom it does not know. Raises Away."""
    with anonymous(url, transport=transport) as http:
        try:
            return http.request(method, path, json=body)
        except httpx.TransportError:
            local = is_local(url)
            raise Away(f"Nothing answers at {url}.", hint="hostler up" if local else "") from None


def login(
    url: str, account: str, password: str, *, transport: httpx.BaseTransport | None = None
) -> dict[str, Any]:
    """Return the session that a login opens. Raises Failed."""
    named = {"email" if "@" in account else "username": account, "password": password}
    answer = ask_openly(url, "POST", "/api/auth/login", named, transport=transport)
    if answer.status_code == 401:
        raise Failed(f"{url} does not know this account, or not with this password.")
    return dict(read_json(answer))


def segment(part: str) -> str:
    """Return `part` as one piece of a path."""
    return quote(part, safe="")


def parse_events(answer: httpx.Response, last_id: str | None) -> Iterator[tuple[str | None, Event | None]]:
    """Yield what a stream of server-sent events holds: the id to go on from, and the event, None for a comment.

    As https://html.spec.whatwg.org/multipage/server-sent-events.html has it, for streams in UTF-8.
    """
    name, data = "message", list[str]()
    for line in _lines(answer.iter_bytes()):
        label, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                yield last_id, Event(name, orjson.loads("\n".join(data)))
            name, data = "message", []
        elif label == "event":
            name = value
        elif label == "data":
            data.append(value)
        elif label == "id":
            last_id = value
        elif not label:
            yield last_id, None


def _lines(chunks: Iterator[bytes]) -> Iterator[str]:
    # not str.splitlines, which also ends lines at characters that JSON may hold as they are
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r").decode("utf-8", "replace")


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome is not None else None
    asked = error.retry_after_s if isinstance(error, _Passing) else 0.0
    return max(asked, wait_random_exponential(multiplier=0.4, max=3)(state))


@contextlib.contextmanager
def running(timer: threading.Timer) -> Iterator[None]:
    """Run a timer for as long as the block; what it has begun to say is said before the block ends."""
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join(1)


def is_local(url: str) -> bool:
    """Tell whether a URL leads to this machine."""
    return is_loopback(urlsplit(url).hostname or "")


def _others(message: str, details: Any, more: Any) -> Iterator[str]:
    """Yield what is wrong besides what the message says: a few fields, and how many more (`more` were not told)."""
    further = more if isinstance(more, int) else 0
    problems = details if isinstance(details, dict) else {}
    others = [
        f"{name}: {problem}"
        for name, problem in problems.items()
        if not message.startswith(name) and str(problem) not in message
    ]
    yield from others[:MOST_PROBLEMS]
    if len(others) + further > MOST_PROBLEMS:
        yield f"And {len(others) + further - MOST_PROBLEMS} more."


def _succeeded(answer: httpx.Response, instead_of: str = "") -> httpx.Response:
    """Return a good answer as it is. Raises Failed with what the server says otherwise.

    `instead_of` names the option or variable whose credentials would go before those of a login.
    """
    if answer.is_success:
        return answer
    url = f"{answer.request.url.scheme}://{answer.request.url.netloc.decode()}"
    try:
        body = answer.json()
        message = str(body.get("message") or body["error"])
    except (ValueError, KeyError, AttributeError):
        raise Failed(f"{url} answered {answer.status_code}, and not as Hostler does.") from None
    others = _others(message, body.get("details"), body.get("furtherDetails"))
    sentence = " ".join([message if message.endswith(".") else f"{message}.", *others])
    hint = HINTS.get(answer.status_code, "")
    if answer.headers.get("X-Error-Code") == "ROUTE_NOT_FOUND":
        message = f"{url} has no such endpoint; it may be older than this command line, {__version__}."
        raise Failed(message, hint="hostler health, which shows its version")
    if answer.status_code == 404:
        path = answer.request.url.path
        hint = next((tried for prefix, tried in LISTS if path.startswith(prefix)), "")
    if answer.status_code == 401:
        hint = f"hostler login --url {url}" + (f", then the same without {instead_of}" if instead_of else "")
    raise Failed(sentence, hint=hint)


def read_json(answer: httpx.Response) -> Any:
    """Return what a good answer holds. Raises Failed with what the server says otherwise."""
    _succeeded(answer)
    if answer.status_code == 204:
        return {}
    try:
        return answer.json()
    except ValueError:
        raise Failed(f"{answer.request.url} did not answer with JSON.") from None
