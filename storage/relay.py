"""Requests to an app on whichever node it runs, carried by the node's own connection to Redis.

A question is sealed for one node, one session of it and one id: who can write to Redis may lose it, but can neither
make one, read one, answer one, nor have one carried out twice. Bodies travel in pieces, a few at a time, and both
sides keep to the same limits. Whoever asks waits on the one subscription of its process.
"""

import asyncio
import contextlib
import logging
import random
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Literal

import orjson

from storage import errors
from storage.calls import command, script, text
from storage.errors import BadGateway, GatewayTimeout, HostlerError, TooLarge, Unavailable
from storage.identity import Identity
from storage.seal import Forged
from storage.store import Store
from storage.wire import DEADLINE_S

log = logging.getLogger("hostler.storage")

MIB = 1024 * 1024
#: How large a body may be, either way, where nothing else is said; and how large at most.
LIMIT_BYTES, MOST_BYTES = 10 * MIB, 64 * MIB
#: How long an answer may take, where nothing else is said; and how long at most.
#: Routers of platforms hang up on a request that nothing has been heard of for 30 s.
TIMEOUT_S, MOST_TIMEOUT_S = 25.0, 600.0
#: An archive of a backup has no limit of its size, and this one of its time; but who takes nothing for so long is gone.
ARCHIVE_TIMEOUT_S, STALL_S = 86_400.0, 120.0
#: Bodies travel in pieces of this size, so many of which may wait for the other side.
PIECE_BYTES, WINDOW = 128 * 1024, 8
#: What all answers that one process collects may hold together.
COLLECTED_BYTES = 256 * MIB
#: How long a node counts as there after it last said so, and how often it says so.
SESSION_S, SAY_S = 12.0, 4.0
#: How far the clocks of web and node may be apart.
LEEWAY_S = 30.0
#: How often a node forgets the questions that could not come again anyway.
SWEEP_MS = 5_000
#: What may wait for one node, and how much a node does at once: in all, and for one app, which may hang.
MOST_WAITING, SLOTS, APP_SLOTS = 256, 64, 24
#: The slow poll behind the messages, which may get lost.
POLL_S = 2.0
#: A node that says that it is there and has not taken a question by then is given up; on a busy machine one poll is not
#: enough.
TAKEN_WITHIN_S = 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A question to an app, or to its node about it.

    `http` is passed on to the process (`process` empty: the one that serves the app's routes); `file` reads `path`
    below `within` in the active release, or else `fallback`; `log` reads the last `lines` of an instance's log file;
    `archive` is of the record `path` of the backup job `app`.
    `caller` is told to the app in a signed header, `forwarded` (for, proto, host, prefix) in X-Forwarded-*, and of
    `headers` what opens none of our doors.
    """

    app: str
    kind: Literal["http", "file", "log", "archive"] = "http"
    process: str = ""
    index: int = 0
    method: str = "GET"
    path: str = "/"
    query: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    within: str = ""
    fallback: str = ""
    lines: int = 500
    caller: Mapping[str, str] | None = None
    forwarded: Mapping[str, str] = field(default_factory=dict)
    limit_bytes: int = LIMIT_BYTES
    timeout_s: float = TIMEOUT_S

    @property
    def within_s(self) -> float:
        """Return how long its answer may take."""
        return ARCHIVE_TIMEOUT_S if self.kind == "archive" else min(self.timeout_s, MOST_TIMEOUT_S)

    @property
    def within_bytes(self) -> int | None:
        """Return how large bodies may be, either way; None for no limit."""
        return None if self.kind == "archive" else min(self.limit_bytes, MOST_BYTES)


@dataclass(frozen=True, slots=True)
class Head:
    """How an answer begins."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What the app said, whole."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str | None:
        """Return the first value of a header, whatever the case of its name."""
        return next((value for each, value in self.headers if each.lower() == name.lower()), None)


#: Answers one question on its node: a Head first, then the body in pieces. What it raises reaches the asker.
Handle = Callable[[Ask], AsyncGenerator[Head | bytes, None]]


def caller(identity: Identity | None) -> dict[str, str] | None:
    """Return what an app is told of who asks."""
    if identity is None:
        return None
    return {"sub": identity.id, "name": identity.name, "role": identity.role, "kind": identity.kind}


# Pieces, as both sides make and read them

_MORE, _LAST, _ERROR = b"+", b".", b"!"


class _Gone(Exception):
    """Nobody waits for this any more."""


@dataclass(slots=True)
class _Way:
    """One direction of one exchange; the number of each piece is sealed into it, so that none moves or repeats."""

    store: Store
    name: Literal["ask", "answer"]
    id: str
    bound_to: str
    channel: str = ""
    ttl_ms: int = 0
    sent: int = 0
    taken: int = 0
    overdue: Callable[[], Awaitable[None]] | None = None  # asked now and then while nothing has come
    always: bool = False  # and also while nothing more comes
    announced: bool = False  # nothing is there before somebody says so
    nudged: asyncio.Event = field(default_factory=asyncio.Event)

    async def put(self, mark: bytes, data: bytes) -> None:
        """Send a piece once the other side has room for it. Raises _Gone, Unavailable."""
        sealed = self.store.seal.encrypt(f"relay {self.name}", mark + data, bound_to=self._bound(self.sent))
        self.sent += 1
        pause_s = 0.002
        since = time.monotonic()
        while time.monotonic() - since < STALL_S:
            call = script("relay_put", self.name, self.id, sealed, self.ttl_ms, WINDOW, self.channel)
            reply = await self.store.call(call)
            if reply == b"ok":
                return
            if reply == b"gone":
                raise _Gone
            await asyncio.sleep(pause_s)
            pause_s = min(0.05, pause_s * 2)
        raise _Gone

    async def pieces(self) -> AsyncGenerator[tuple[bytes, bytes], None]:
        """Yield mark and data of each piece until the last. Raises Forged, Unavailable."""
        key, looks = f"h:relay:{self.name}:{self.id}", not self.announced
        while True:
            if looks:
                self.nudged.clear()
            for sealed in (await self.store.call(command("LPOP", key, WINDOW)) if looks else None) or ():
                raw = self.store.seal.decrypt(
                    f"relay {self.name}", text(sealed), bound_to=self._bound(self.taken)
                )
                self.taken += 1
                yield raw[:1], raw[1:]
                if raw[:1] != _MORE:
                    return
            looks = True
            try:
                async with asyncio.timeout(POLL_S):
                    await self.nudged.wait()
            except TimeoutError:
                if self.overdue is not None and (self.always or not self.taken):
                    await self.overdue()

    def _bound(self, number: int) -> str:
        return f"{self.bound_to} {self.name} {number}"


def _bound_to(node: str, session: str, ask_id: str) -> str:
    return f"{node} {session} {ask_id}"


# Asking


class _Desk:
    """All that one process has asked and not heard yet."""

    def __init__(self, store: Store) -> None:
        self.store, self.loop = store, asyncio.get_running_loop()
        self.channel = f"h:relay:answers:{secrets.token_hex(8)}"
        self.waiting: dict[str, _Way] = {}
        self._sessions: dict[str, str] = {}
        self.collected_bytes = 0
        self._connected = asyncio.Event()
        self._aside: set[asyncio.Task[Any]] = set()
        self._listening = self.aside(store.wire.listen([self.channel], self._tell, self._look_all_over))
        store.closing.append(self.close)

    def aside(self, work: Any) -> asyncio.Task[Any]:
        """Do something whose end nobody waits for."""
        task = self.loop.create_task(work)
        self._aside.add(task)
        task.add_done_callback(self._aside.discard)
        return task

    def _tell(self, channel: bytes, message: bytes) -> None:
        if (way := self.waiting.get(text(message))) is not None:
            way.nudged.set()

    def _look_all_over(self) -> None:
        self._connected.set()
        for way in self.waiting.values():
            way.nudged.set()

    async def session(self, node: str, *, fresh: bool) -> str:
        """Return the session under which a node answers, from memory unless `fresh`. Raises Unavailable.

        One that is over does no harm: the script that takes a question refuses it.
        """
        if not fresh and (known := self._sessions.get(node)):
            return known
        session = text(await self.store.call(command("GET", f"h:relay:session:{node}")))
        if not session:
            self._sessions.pop(node, None)
            raise Unavailable(f"Node {node} is offline.")
        self._sessions[node] = session
        return session

    async def ready(self) -> None:
        """Return once no answer will be missed. Raises Unavailable."""
        if not self._connected.is_set():
            try:
                async with asyncio.timeout(DEADLINE_S):
                    await self._connected.wait()
            except TimeoutError:
                raise Unavailable("Redis cannot be listened to for now.") from None

    async def close(self) -> None:
        """Hang up. Safe to run twice."""
        self.store.cache.pop("relay", None)
        self._listening.cancel()
        if self.loop is asyncio.get_running_loop():
            await asyncio.gather(*self._aside, return_exceptions=True)

    async def forget(self, node: str, ask_id: str, *, drop: bool) -> None:
        """Leave nothing of an exchange behind, and have the node stop where it is still at it."""
        keys = [f"h:relay:{name}:{ask_id}" for name in ("open", "ask", "answer")]
        calls = [command("DEL", *keys)]
        if drop:
            calls.append(command("PUBLISH", f"h:relay:asks:{node}", f"drop {ask_id}"))
        with contextlib.suppress(Unavailable):  # then it expires
            await self.store.calls(*calls)


def _desk(store: Store) -> _Desk:
    desk = store.cache.get("relay")
    if not isinstance(desk, _Desk) or desk.loop is not asyncio.get_running_loop():
        desk = store.cache["relay"] = _Desk(store)
    return desk


async def request(store: Store, node: str, ask: Ask) -> Answer:
    """Return what the app on `node` answers.

    Raises Unavailable for a node that is away, silent or too busy and for an app that does not run (NotRunning),
    BadGateway where the app cannot be reached or answers nonsense or too much, GatewayTimeout, TooLarge, NotFound.
    """
    async with _asked(store, node, ask) as answers:
        return await _collect(_desk(store), answers, ask)


async def stream(store: Store, node: str, ask: Ask) -> AsyncGenerator[Head | bytes, None]:
    """Yield the head of an answer and its body as it comes, as fast as the caller takes it.

    Raises what `request` does, also in the midst of the body: what came until then is then not the whole of it.
    """
    async with _asked(store, node, ask) as answers:
        headed = False
        async with aclosing(answers.pieces()) as pieces:
            async for mark, data in pieces:
                if mark == _ERROR:
                    raise _told(orjson.loads(data))
                if headed:
                    yield data
                    continue
                headed = True
                said = orjson.loads(data)
                yield Head(said["status"], tuple((name, value) for name, value in said["headers"]))


@contextlib.asynccontextmanager
async def _asked(store: Store, node: str, ask: Ask) -> AsyncGenerator[_Way, None]:
    """Hand a question over, and give the way on which its answer comes; in the end nothing is left of either."""
    if ask.within_bytes is not None and len(ask.body) > ask.within_bytes:
        raise TooLarge(f"A request to an app has at most {ask.within_bytes} bytes.")
    desk = _desk(store)
    await desk.ready()
    ask_id, finished = secrets.token_hex(16), False
    timeout_s = ask.within_s
    ttl_ms = int((timeout_s + 5) * 1000)
    answers = desk.waiting[ask_id] = _Way(
        store, "answer", ask_id, "", always=ask.kind == "archive", announced=True
    )
    sending = None
    try:
        async with asyncio.timeout(timeout_s + 1):  # the node gives up a little earlier, and says why
            await _hand_over(desk, node, ask, answers, ttl_ms)
            bodies = _Way(store, "ask", ask_id, answers.bound_to, f"h:relay:asks:{node}", ttl_ms)
            if len(ask.body) > PIECE_BYTES:
                sending = desk.aside(_send_body(bodies, ask.body))
            yield answers
            finished = True
    except TimeoutError:
        raise GatewayTimeout(f"{ask.app} did not answer within {timeout_s:g} s.") from None
    except Forged:
        log.error("an answer was not the node's", extra={"node": node, "app": ask.app})
        raise BadGateway(f"The answer of {ask.app} was not its node's.") from None
    finally:
        del desk.waiting[ask_id]
        if sending is not None:
            sending.cancel()
        desk.aside(desk.forget(node, ask_id, drop=not finished))


def _sealed(store: Store, ask: Ask, bound_to: str, *, reply_to: str, ttl_ms: int) -> str:
    fields = asdict(ask)
    whole = len(ask.body) <= PIECE_BYTES
    body = fields.pop("body") if whole else b""
    fields.pop("body", None)
    head = {"ask": fields, "until": store.now_ms() + ttl_ms, "reply_to": reply_to, "whole": whole}
    return store.seal.encrypt("relay question", orjson.dumps(head) + b"\n" + body, bound_to=bound_to)


async def _hand_over(desk: _Desk, node: str, ask: Ask, answers: _Way, ttl_ms: int) -> None:
    """Put a question before its node, under the session that it answers by. Raises Unavailable."""
    store = desk.store
    for fresh in (False, True):
        session = await desk.session(node, fresh=fresh)
        answers.bound_to = _bound_to(node, session, answers.id)
        since = time.monotonic()
        answers.overdue = partial(_see_it_taken, store, node, session, answers.id, since=since)
        sealed = _sealed(store, ask, answers.bound_to, reply_to=desk.channel, ttl_ms=ttl_ms)
        reply = await store.call(script("relay_ask", node, session, answers.id, sealed, ttl_ms, MOST_WAITING))
        if reply == b"full":
            raise Unavailable(f"Node {node} is asked too much at once.")
        if reply == b"ok":
            return
    raise Unavailable(f"Node {node} is restarting.")


async def _send_body(way: _Way, body: bytes) -> None:
    with contextlib.suppress(_Gone, Unavailable):  # who waits for the answer will see
        for at in range(0, len(body), PIECE_BYTES):
            last = at + PIECE_BYTES >= len(body)
            await way.put(_LAST if last else _MORE, body[at : at + PIECE_BYTES])


async def _see_it_taken(store: Store, node: str, session: str, ask_id: str, *, since: float) -> None:
    taken, current = await store.calls(
        command("GET", f"h:relay:open:{ask_id}"), command("GET", f"h:relay:session:{node}")
    )
    if text(current) != session:
        raise Unavailable(f"Node {node} has gone, or was started anew.")
    if taken != b"taken" and time.monotonic() - since >= TAKEN_WITHIN_S:
        raise Unavailable(f"Node {node} does not take questions for now.")


async def _collect(desk: _Desk, way: _Way, ask: Ask) -> Answer:
    """Return the answer once it is whole. Raises what the node said went wrong."""
    head: dict[str, Any] = {}
    parts: list[bytes] = []
    size_bytes = 0
    try:
        async with aclosing(way.pieces()) as pieces:
            async for mark, data in pieces:
                if mark == _ERROR:
                    raise _told(orjson.loads(data))
                if not head:
                    head = orjson.loads(data)
                    continue
                size_bytes += len(data)
                desk.collected_bytes += len(data)
                if ask.within_bytes is not None and size_bytes > ask.within_bytes:
                    raise BadGateway(f"The answer of {ask.app} has more than {ask.limit_bytes} bytes.")
                if desk.collected_bytes > COLLECTED_BYTES:
                    raise Unavailable("Too many large answers are on their way at once.")
                parts.append(data)
    finally:
        desk.collected_bytes -= size_bytes
    return Answer(head["status"], tuple((name, value) for name, value in head["headers"]), b"".join(parts))


#: What an asker may be told; any other error of a node is its own affair.
_KINDS: Mapping[str, type[HostlerError]] = {
    kind.__name__: kind
    for kind in (
        errors.BadGateway, errors.Conflict, errors.Denied, errors.GatewayTimeout, errors.Invalid, errors.NotFound,
        errors.NotRunning, errors.TooLarge, errors.TooMany, errors.Unavailable,
    )
}  # fmt: skip


def _told(said: Mapping[str, str]) -> HostlerError:
    return _KINDS.get(said["kind"], BadGateway)(said["message"])


# Answering


async def serve(store: Store, node: str, handle: Handle, *, slots: int = SLOTS) -> None:
    """Answer what is asked of `node`, up to `slots` questions at once, until cancelled.

    A session begins here: questions to an earlier one are not answered any more.
    """
    clerk = _Clerk(store, node, handle, slots)
    channel = f"h:relay:asks:{node}"
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(store.wire.listen([channel], clerk.tell, clerk.look_all_over))
            group.create_task(clerk.keep_saying_so())
            group.create_task(clerk.keep_taking())
    finally:
        await clerk.close()


@dataclass(slots=True, eq=False)
class _Exchange:
    """One question that is being answered."""

    app: str
    task: asyncio.Task[None]
    body: _Way


class _Clerk:
    """The node's side of all exchanges of one session."""

    def __init__(self, store: Store, node: str, handle: Handle, slots: int) -> None:
        self.store, self.node, self.handle, self.slots = store, node, handle, slots
        self.session = secrets.token_hex(16)
        self.exchanges: dict[str, _Exchange] = {}
        self.seen: dict[str, int] = {}  # questions taken, and until when one could come again (ms)
        self._woken = asyncio.Event()
        self._swept_ms = 0

    def tell(self, channel: bytes, message: bytes) -> None:
        """Take a message: there is a question, a piece of a body, or nobody waits any more."""
        word, _, ask_id = text(message).rpartition(" ")
        if ask_id == "ask":
            self._woken.set()
        elif (exchange := self.exchanges.get(ask_id)) is not None:
            if word == "drop":
                exchange.task.cancel()
            exchange.body.nudged.set()

    def look_all_over(self) -> None:
        """Look for what messages may have been missed about."""
        self._woken.set()
        for exchange in self.exchanges.values():
            exchange.body.nudged.set()

    async def keep_saying_so(self) -> None:
        """Say that this session answers."""
        words = ("SET", f"h:relay:session:{self.node}", self.session, "PX", int(SESSION_S * 1000))
        while True:
            try:
                await self.store.call(command(*words))
            except Unavailable:
                pass
            except Exception:  # what is wrong in Redis may be mended
                log.exception("cannot say that this node answers")
            await asyncio.sleep(SAY_S)

    async def keep_taking(self) -> None:
        """Take questions while there is room."""
        while True:
            with contextlib.suppress(TimeoutError):
                # not wait_for, which until Python 3.12 forgets a cancellation that comes with what it waits for
                async with asyncio.timeout(POLL_S * random.uniform(0.8, 1.2)):  # noqa: S311  jitter
                    await self._woken.wait()
            self._woken.clear()
            try:
                while len(self.exchanges) < self.slots and await self._take():
                    pass
            except Unavailable:
                await asyncio.sleep(random.uniform(0.1, 0.5))  # noqa: S311  jitter
            except Exception:  # as above; a node that takes no questions any more would look well
                log.exception("cannot take questions to apps")
                await asyncio.sleep(POLL_S)

    async def _take(self) -> bool:
        reply = await self.store.call(script("relay_take", self.node))
        if not reply:
            return False
        ask_id, sealed = text(reply[0]), text(reply[1])
        try:
            ask, reply_to, whole = self._opened(ask_id, sealed)
        except (Forged, LookupError, TypeError, ValueError) as error:
            log.error("refused a question to an app", extra={"node": self.node, "why": str(error)})
            return True
        bound_to = _bound_to(self.node, self.session, ask_id)
        ttl_ms = int((ask.within_s + 5) * 1000)
        body = _Way(self.store, "ask", ask_id, bound_to)
        answer = _Way(self.store, "answer", ask_id, bound_to, reply_to, ttl_ms)
        under_way = sum(exchange.app == ask.app for exchange in self.exchanges.values())
        work = self._answer(ask, whole, body, answer) if under_way < APP_SLOTS else _refuse(ask, answer)
        task = asyncio.get_running_loop().create_task(work)
        self.exchanges[ask_id] = _Exchange(ask.app, task, body)
        task.add_done_callback(lambda _: self._done(ask_id))
        return True

    def _done(self, ask_id: str) -> None:
        del self.exchanges[ask_id]
        self._woken.set()

    def _opened(self, ask_id: str, sealed: str) -> tuple[Ask, str, bool]:
        """Return a question, where its answers go, and whether its body is in it.

        Raises Forged for one that was not meant for this session, came too late, or comes again.
        """
        raw = self.store.seal.decrypt(
            "relay question", sealed, bound_to=_bound_to(self.node, self.session, ask_id)
        )
        first, _, body = raw.partition(b"\n")
        head = orjson.loads(first)
        now_ms, leeway_ms = self.store.now_ms(), int(LEEWAY_S * 1000)
        if now_ms - self._swept_ms > SWEEP_MS:
            self._swept_ms = now_ms
            self.seen = {each: until for each, until in self.seen.items() if until > now_ms}
        if ask_id in self.seen:
            raise Forged("A question came twice.")
        if head["until"] + leeway_ms < now_ms:
            raise Forged("A question came too late; or the clocks are apart.")
        self.seen[ask_id] = head["until"] + leeway_ms
        fields = head["ask"]
        fields["headers"] = tuple((name, value) for name, value in fields["headers"])
        fields = {name: value for name, value in fields.items() if name in Ask.__dataclass_fields__}
        fields["limit_bytes"] = min(fields["limit_bytes"], MOST_BYTES)
        fields["timeout_s"] = min(fields["timeout_s"], MOST_TIMEOUT_S)
        return Ask(**fields, body=body), head["reply_to"], head["whole"]

    async def _answer(self, ask: Ask, whole: bool, body: _Way, answer: _Way) -> None:
        try:
            try:
                async with asyncio.timeout(ask.within_s):
                    if not whole:
                        ask = replace(ask, body=await _body(body, ask.limit_bytes))
                    await self._carry_out(ask, answer)
            except HostlerError as error:
                await _tell_error(answer, error)
            except TimeoutError:
                message = f"{ask.app} did not answer within {ask.timeout_s:g} s."
                await _tell_error(answer, GatewayTimeout(message))
            except _Gone:
                raise
            except Exception:
                log.exception("a question to an app went wrong", extra={"app": ask.app})
                await _tell_error(answer, BadGateway(f"The node could not put the question to {ask.app}."))
        except (_Gone, Unavailable):
            return  # nobody waits, or nobody can be told

    async def _carry_out(self, ask: Ask, answer: _Way) -> None:
        """Send head and body of the answer, as large pieces as there are. Raises what `handle` does, and _Gone."""
        size_bytes = 0
        kept = bytearray()
        async with aclosing(self.handle(ask)) as parts:
            async for part in parts:
                if isinstance(part, Head):
                    await answer.put(_MORE, orjson.dumps({"status": part.status, "headers": part.headers}))
                    continue
                size_bytes += len(part)
                if ask.within_bytes is not None and size_bytes > ask.within_bytes:
                    raise BadGateway(f"The answer of {ask.app} has more than {ask.limit_bytes} bytes.")
                kept += part
                while len(kept) > PIECE_BYTES:
                    await answer.put(_MORE, bytes(kept[:PIECE_BYTES]))
                    del kept[:PIECE_BYTES]
        await answer.put(_LAST, bytes(kept))

    async def close(self) -> None:
        """Stop answering."""
        tasks = [exchange.task for exchange in self.exchanges.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        key = f"h:relay:session:{self.node}"
        with contextlib.suppress(Unavailable):
            if text(await self.store.call(command("GET", key))) == self.session:
                await self.store.call(command("DEL", key))


async def _refuse(ask: Ask, answer: _Way) -> None:
    with contextlib.suppress(_Gone, Unavailable):
        await _tell_error(answer, Unavailable(f"{ask.app} is asked too much at once."))


async def _body(way: _Way, limit_bytes: int) -> bytes:
    whole = bytearray()
    async with aclosing(way.pieces()) as pieces:
        async for _, data in pieces:
            whole += data
            if len(whole) > limit_bytes:
                raise TooLarge(f"A request to an app has at most {limit_bytes} bytes.")
    return bytes(whole)


async def _tell_error(way: _Way, error: HostlerError) -> None:
    kind = next(
        each.__name__ for each in type(error).__mro__ if each.__name__ in _KINDS or each is HostlerError
    )
    await way.put(_ERROR, orjson.dumps({"kind": kind, "message": str(error)}))
