"""Asking: a process puts questions before nodes, and hears all answers on one subscription."""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict
from functools import partial
from typing import Any

import orjson

from settings import MIB
from storage.calls import command, script, text
from storage.errors import BadGateway, GatewayTimeout, TooLarge, Unavailable
from storage.relay.questions import Answer, Ask, Head
from storage.relay.ways import ERROR, LAST, MORE, PIECE_BYTES, Gone, Way, binding, error_of
from storage.seal import Forged
from storage.store import Store
from storage.wire import DEADLINE_S

log = logging.getLogger("hostler.storage")

#: What all answers that one process collects may hold together.
COLLECTED_BYTES = 256 * MIB
#: What may wait for one node.
MOST_WAITING = 256
#: A node that says that it is there and has not taken a question by then is given up; on a busy machine one poll is not
#: enough.
TAKEN_WITHIN_S = 6.0


class _Desk:
    """All that one process has asked and not heard yet."""

    def __init__(self, store: Store) -> None:
        self.store, self.loop = store, asyncio.get_running_loop()
        self.channel = f"h:relay:answers:{secrets.token_hex(8)}"
        self.waiting: dict[str, Way] = {}
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
                if mark == ERROR:
                    raise error_of(orjson.loads(data))
                if headed:
                    yield data
                    continue
                headed = True
                said = orjson.loads(data)
                yield Head(said["status"], tuple((name, value) for name, value in said["headers"]))


@contextlib.asynccontextmanager
async def _asked(store: Store, node: str, ask: Ask) -> AsyncGenerator[Way, None]:
    """Hand a question over, and give the way on which its answer comes; in the end nothing is left of either."""
    if ask.within_bytes is not None and len(ask.body) > ask.within_bytes:
        raise TooLarge(f"A request to an app has at most {ask.within_bytes} bytes.")
    desk = _desk(store)
    await desk.ready()
    ask_id, finished = secrets.token_hex(16), False
    timeout_s = ask.within_s
    ttl_ms = int((timeout_s + 5) * 1000)
    answers = desk.waiting[ask_id] = Way(
        store, "answer", ask_id, "", always=ask.kind == "archive", announced=True
    )
    sending = None
    try:
        async with asyncio.timeout(timeout_s + 1):  # the node gives up a little earlier, and says why
            await _hand_over(desk, node, ask, answers, ttl_ms)
            bodies = Way(store, "ask", ask_id, answers.bound_to, f"h:relay:asks:{node}", ttl_ms)
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


async def _hand_over(desk: _Desk, node: str, ask: Ask, answers: Way, ttl_ms: int) -> None:
    """Put a question before its node, under the session that it answers by. Raises Unavailable."""
    store = desk.store
    for fresh in (False, True):
        session = await desk.session(node, fresh=fresh)
        answers.bound_to = binding(node, session, answers.id)
        since = time.monotonic()
        answers.overdue = partial(_see_it_taken, store, node, session, answers.id, since=since)
        sealed = _sealed(store, ask, answers.bound_to, reply_to=desk.channel, ttl_ms=ttl_ms)
        reply = await store.call(script("relay_ask", node, session, answers.id, sealed, ttl_ms, MOST_WAITING))
        if reply == b"full":
            raise Unavailable(f"Node {node} is asked too much at once.")
        if reply == b"ok":
            return
    raise Unavailable(f"Node {node} is restarting.")


async def _send_body(way: Way, body: bytes) -> None:
    with contextlib.suppress(Gone, Unavailable):  # who waits for the answer will see
        for at in range(0, len(body), PIECE_BYTES):
            last = at + PIECE_BYTES >= len(body)
            await way.put(LAST if last else MORE, body[at : at + PIECE_BYTES])


async def _see_it_taken(store: Store, node: str, session: str, ask_id: str, *, since: float) -> None:
    taken, current = await store.calls(
        command("GET", f"h:relay:open:{ask_id}"), command("GET", f"h:relay:session:{node}")
    )
    if text(current) != session:
        raise Unavailable(f"Node {node} has gone, or was started anew.")
    if taken != b"taken" and time.monotonic() - since >= TAKEN_WITHIN_S:
        raise Unavailable(f"Node {node} does not take questions for now.")


async def _collect(desk: _Desk, way: Way, ask: Ask) -> Answer:
    """Return the answer once it is whole. Raises what the node said went wrong."""
    head: dict[str, Any] = {}
    parts: list[bytes] = []
    size_bytes = 0
    try:
        async with aclosing(way.pieces()) as pieces:
            async for mark, data in pieces:
                if mark == ERROR:
                    raise error_of(orjson.loads(data))
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
