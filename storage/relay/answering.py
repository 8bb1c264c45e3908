"""Answering: a node takes the questions that are put before it, has each one answered, and sends what comes."""

import asyncio
import contextlib
import logging
import random
import secrets
from contextlib import aclosing
from dataclasses import dataclass, replace

import orjson

from storage.calls import command, script, text
from storage.errors import BadGateway, GatewayTimeout, HostlerError, TooLarge, Unavailable
from storage.relay.questions import MOST_BYTES, MOST_TIMEOUT_S, Ask, Handle, Head
from storage.relay.ways import LAST, MORE, PIECE_BYTES, POLL_S, Gone, Way, binding, tell_error
from storage.seal import Forged
from storage.store import Store

log = logging.getLogger("hostler.storage")

#: How long a node counts as there after it last said so, and how often it says so.
SESSION_S, SAY_S = 12.0, 4.0
#: How far the clocks of web and node may be apart.
LEEWAY_S = 30.0
#: How often a node forgets the questions that could not come again anyway.
SWEEP_MS = 5_000
#: How much a node does at once: in all, and for one app, which may hang.
SLOTS, APP_SLOTS = 64, 24


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
    body: Way


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
        bound_to = binding(self.node, self.session, ask_id)
        ttl_ms = int((ask.within_s + 5) * 1000)
        body = Way(self.store, "ask", ask_id, bound_to)
        answer = Way(self.store, "answer", ask_id, bound_to, reply_to, ttl_ms)
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
            "relay question", sealed, bound_to=binding(self.node, self.session, ask_id)
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

    async def _answer(self, ask: Ask, whole: bool, body: Way, answer: Way) -> None:
        try:
            try:
                async with asyncio.timeout(ask.within_s):
                    if not whole:
                        ask = replace(ask, body=await _body(body, ask.limit_bytes))
                    await self._carry_out(ask, answer)
            except HostlerError as error:
                await tell_error(answer, error)
            except TimeoutError:
                message = f"{ask.app} did not answer within {ask.timeout_s:g} s."
                await tell_error(answer, GatewayTimeout(message))
            except Gone:
                raise
            except Exception:
                log.exception("a question to an app went wrong", extra={"app": ask.app})
                await tell_error(answer, BadGateway(f"The node could not put the question to {ask.app}."))
        except (Gone, Unavailable):
            return  # nobody waits, or nobody can be told

    async def _carry_out(self, ask: Ask, answer: Way) -> None:
        """Send head and body of the answer, as large pieces as there are. Raises what `handle` does, and Gone."""
        size_bytes = 0
        kept = bytearray()
        async with aclosing(self.handle(ask)) as parts:
            async for part in parts:
                if isinstance(part, Head):
                    await answer.put(MORE, orjson.dumps({"status": part.status, "headers": part.headers}))
                    continue
                size_bytes += len(part)
                if ask.within_bytes is not None and size_bytes > ask.within_bytes:
                    raise BadGateway(f"The answer of {ask.app} has more than {ask.limit_bytes} bytes.")
                kept += part
                while len(kept) > PIECE_BYTES:
                    await answer.put(MORE, bytes(kept[:PIECE_BYTES]))
                    del kept[:PIECE_BYTES]
        await answer.put(LAST, bytes(kept))

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


async def _refuse(ask: Ask, answer: Way) -> None:
    with contextlib.suppress(Gone, Unavailable):
        await tell_error(answer, Unavailable(f"{ask.app} is asked too much at once."))


async def _body(way: Way, limit_bytes: int) -> bytes:
    whole = bytearray()
    async with aclosing(way.pieces()) as pieces:
        async for _, data in pieces:
            whole += data
            if len(whole) > limit_bytes:
                raise TooLarge(f"A request to an app has at most {limit_bytes} bytes.")
    return bytes(whole)
