"""One Redis connection for all requests of a process: what one turn of its loop asks leaves in one write.

Measured against a pool of connections, this halves the CPU of a request (docs/decisions/0004). What blocks or
listens must not share it: it uses `listen`, or a client of its own from `Address.client`.
"""

import asyncio
import contextlib
import logging
import random
import ssl
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

import hiredis

from storage import scripts
from storage.calls import Call, Word
from storage.errors import Unavailable

if TYPE_CHECKING:
    from redis.asyncio import Redis

log = logging.getLogger("hostler.storage")
T = TypeVar("T")

#: A reply that has not come by then is given up; the answer to the caller is "unknown", a 503.
DEADLINE_S = 4.0
#: Replies that are errors of Redis itself and pass by themselves.
_PASSING = (
    "LOADING",
    "READONLY",
    "BUSY",
    "MASTERDOWN",
    "TRYAGAIN",
    "CLUSTERDOWN",
    "OOM",
    "MISCONF",
    "NOREPLICAS",
)
#: How often a silent subscription is asked whether it is still there.
PING_S = 5.0
_PING: tuple[Word, ...] = ("PING",)


@dataclass(frozen=True, slots=True)
class Address:
    """Where Redis is, as REDIS_URL says: redis://, rediss:// or unix://."""

    url: str
    host: str
    port: int
    path: str | None
    username: str | None
    password: str | None
    database: int
    tls: ssl.SSLContext | None

    @classmethod
    def of(cls, url: str) -> "Address":
        """Read a Redis URL. Raises ValueError."""
        parts = urlsplit(url)
        if parts.scheme not in {"redis", "rediss", "unix"}:
            raise ValueError(
                f"A Redis URL starts with redis://, rediss:// or unix://, not {parts.scheme}://."
            )
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        tls = None
        if parts.scheme == "rediss":
            tls = ssl.create_default_context(cafile=query.get("ssl_ca_certs"))
            if query.get("ssl_cert_reqs") == "none":  # managed Redis with certificates of its own making
                tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
        database = query.get("db") or (parts.path.strip("/") if parts.scheme != "unix" else "") or "0"
        return cls(
            url=url,
            host=parts.hostname or "127.0.0.1",
            port=parts.port or 6379,
            path=unquote(parts.path) if parts.scheme == "unix" else None,
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
            database=int(database),
            tls=tls,
        )

    @property
    def place(self) -> str:
        """Return where it is, without what is secret."""
        return self.path or f"{self.host}:{self.port}"

    def client(self, **options: Any) -> "Redis":
        """Return a redis-py client, for subscriptions and blocking reads."""
        from redis.asyncio import Redis  # noqa: PLC0415  a third of a second to read, and hardly ever asked for

        return Redis.from_url(self.url, socket_connect_timeout=2, health_check_interval=0, **options)

    def greeting(self) -> list[tuple[Word, ...]]:
        """Return the commands a fresh connection starts with."""
        words: list[tuple[Word, ...]] = []
        if self.password:
            words.append(("AUTH", *([self.username] if self.username else []), self.password))
        if self.database:
            words.append(("SELECT", self.database))
        return words

    def scripts(self) -> list[tuple[Word, ...]]:
        """Return the commands that make every script known."""
        return [("SCRIPT", "LOAD", scripts.source(name)) for name in scripts.names()]


class _Connection(asyncio.Protocol):
    """The protocol of one connection: replies pair with requests by order alone."""

    def __init__(self) -> None:
        self.reader = hiredis.Reader()
        self.waiting: deque[tuple[float, asyncio.Future[Any]]] = deque()  # each with when it must be answered
        self.out: list[bytes] = []
        self.flushes = False  # soon
        self.loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport | None = None
        self.broken = False
        self.timer: asyncio.TimerHandle | None = None
        self.looks_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = transport  # type: ignore[assignment]  # a stream transport, as create_connection makes

    def data_received(self, data: bytes) -> None:
        """Hand each reply to the request whose turn it is, also when nobody waits for it any more."""
        self.reader.feed(data)
        while (reply := self.reader.gets()) is not False:
            self.answer(reply)

    def answer(self, reply: Any) -> None:
        """Hand a reply to the request whose turn it is."""
        _, future = self.waiting.popleft()
        if future.done():
            return
        if isinstance(reply, Exception):
            future.set_exception(reply)
        else:
            future.set_result(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell everybody who waits that no reply will come."""
        self.broken = True
        if self.timer is not None:
            self.timer.cancel()
        for _, future in self.waiting:
            if not future.done():
                future.set_exception(ConnectionError("The connection to Redis was lost."))
        self.waiting.clear()

    def send(self, words: tuple[Word, ...], deadline_s: float = DEADLINE_S) -> asyncio.Future[Any]:
        """Queue one command for the write at the end of this turn of the loop.

        Where no answer comes within `deadline_s`, the future raises TimeoutError and the connection is given up.
        """
        packed = hiredis.pack_command(words)  # type: ignore[arg-type]  # first, for it may refuse a word
        future = self.loop.create_future()
        due = self.loop.time() + deadline_s
        self.waiting.append((due, future))
        if self.timer is None or due < self.looks_at:  # one timer for all: the earliest deadline
            self._look_at(due)
        self.out.append(packed)
        self.flush_soon()
        return future

    def flush_soon(self) -> None:
        """Write what is sent by then once the callbacks have run that wait for their turn now."""
        if not self.flushes:
            self.flushes = True
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self.flushes = False
        if self.out and self.transport is not None and not self.broken:
            self.transport.write(b"".join(self.out))
        self.out.clear()

    def _look_at(self, due: float) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.timer, self.looks_at = self.loop.call_at(due, self._look), due

    def _look(self) -> None:
        """Give up the connection once somebody has waited too long: what comes late must not answer somebody else."""
        self.timer = None
        waiting = [(due, future) for due, future in self.waiting if not future.done()]
        if not waiting or self.broken:
            return
        now = self.loop.time()
        late = [future for due, future in waiting if due <= now]
        for future in late:
            future.set_exception(TimeoutError())
        if late:
            self.close()
        else:
            self._look_at(min(due for due, _ in waiting))

    def close(self) -> None:
        """Drop the connection."""
        self.broken = True
        if self.transport is not None:
            self.transport.abort()


class Subscribed(_Connection):
    """A connection on which messages come unasked; whoever reads them keeps `heard`, when it last did."""

    def __init__(self) -> None:
        super().__init__()
        self.lost, self.heard = asyncio.Event(), self.loop.time()

    def connection_lost(self, exc: Exception | None) -> None:
        """Have whoever stays connect again."""
        super().connection_lost(exc)
        self.lost.set()

    async def stay(self) -> None:
        """Return once the connection is lost, or does not answer any more where it has been silent."""
        with contextlib.suppress(OSError, TimeoutError, hiredis.ReplyError):
            while not self.broken:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PING_S):
                        await self.lost.wait()
                if self.loop.time() - self.heard > PING_S and not self.broken:
                    await self.send(_PING, DEADLINE_S)


class _Listening(Subscribed):
    """One that tells each message."""

    def __init__(self, tell: Callable[[bytes, bytes], None]) -> None:
        super().__init__()
        self.tell = tell

    def data_received(self, data: bytes) -> None:
        """Hand each message to the listener, and replies to whoever waits for one."""
        self.heard = self.loop.time()
        self.reader.feed(data)
        while (reply := self.reader.gets()) is not False:
            if isinstance(reply, list) and reply and reply[0] in {b"message", b"pmessage"}:
                self.tell(reply[-2], reply[-1])
            elif self.waiting:
                self.answer(reply)


def backoff_s(failures: int) -> float:
    """Return how long to wait before connecting again after so many failures: 0.1 s doubling to 1 s, at most halved."""
    # after a thousand failures, 2 to their power is no float any more
    return min(1.0, 0.05 * 2.0 ** min(failures, 5)) * random.uniform(0.5, 1)  # noqa: S311  jitter


C = TypeVar("C", bound=_Connection)


class Wire:
    """Redis as seen by one event loop: `call` describes a step, the answer or an error comes back.

    Connects on first use, and again with back-off after every loss; nothing is sent twice.
    """

    def __init__(self, url: str) -> None:
        self.address = Address.of(url)
        self._connection: _Connection | None = None
        self._connecting: asyncio.Lock | None = None
        self._away = False
        self._failures = 0  # in a row, to make this connection or another one
        self._not_before = 0.0
        self._reached = asyncio.Event()  # for those who wait to connect again
        self._distrusted = ""  # why the certificate that Redis showed last is none to be trusted

    async def call(self, call: Call[T], *, deadline_s: float = DEADLINE_S) -> T:
        """Carry out one step. Raises Unavailable when Redis is away or silent; it may then have happened."""
        reply = await self._reply(call, deadline_s)
        return call.read(reply)

    def tell(self, call: Call[Any], answered: Callable[[asyncio.Future[Any]], object]) -> bool:
        """Send one step without waiting, before whatever is sent later; `answered` gets the raw reply or the error.

        Answers False, and sends nothing, while there is no connection.
        """
        sent = self.send(call)
        if sent is None:
            return False
        sent.add_done_callback(answered)
        return True

    async def calls(self, *many: Call[Any], deadline_s: float = DEADLINE_S) -> list[Any]:
        """Carry out several independent steps in one round trip; their answers come in the same order."""
        return list(await asyncio.gather(*(self.call(one, deadline_s=deadline_s) for one in many)))

    async def _reply(self, call: Call[Any], deadline_s: float) -> Any:
        try:
            connection = self._connection
            if connection is None or connection.broken:
                async with asyncio.timeout(deadline_s):
                    connection = await self._connected()
            try:
                return await connection.send(call.words, deadline_s)
            except hiredis.ReplyError as error:
                if call.script is None or not str(error).startswith("NOSCRIPT"):
                    raise
                # somebody flushed the scripts: the text carries the step this once and is kept again
                words = ("EVAL", scripts.source(call.script), *call.words[2:])
                return await connection.send(words, deadline_s)
        except (OSError, hiredis.ReplyError) as error:
            if (passing := self.unavailable(error)) is None:
                raise
            raise passing from None

    def send(self, call: Call[Any], *, others_first: bool = False) -> "asyncio.Future[Any] | None":
        """Send one step without a task that waits; the future has the raw reply, or what `unavailable` explains.

        Answers None, and sends nothing, while there is no connection. A script that Redis forgot is an error.
        With `others_first`, those who hear of something by this step hear of it before we have the answer.
        """
        connection = self._connection
        if connection is None or connection.broken:
            return None
        if others_first and not connection.out:
            # Redis writes first to whom it came to have something for last, and for us it has this ahead of the step
            connection.send(_PING).cancel()  # nobody waits for it
        return connection.send(call.words)

    def flush_soon(self) -> None:
        """Have what is sent by callbacks that wait for their turn now leave right behind them, in the same turn."""
        if self._connection is not None:
            self._connection.flush_soon()

    def unavailable(self, error: Exception) -> Unavailable | None:
        """Return what it means that a step failed with `error`; None where Redis refuses that step itself."""
        if isinstance(error, TimeoutError):
            return Unavailable("Redis did not answer in time.")
        if isinstance(error, OSError):
            why = self._distrusted and f" Its certificate is not trusted: {self._distrusted}."
            return Unavailable(f"Redis cannot be reached.{why}")
        if str(error).startswith(_PASSING):
            return Unavailable(f"Redis refuses for now: {str(error).partition(' ')[0]}.")
        return None

    async def _connected(self) -> _Connection:
        if self._connecting is None:
            self._connecting = asyncio.Lock()
        async with self._connecting:
            if self._connection is not None and not self._connection.broken:
                return self._connection
            if asyncio.get_running_loop().time() < self._not_before:
                raise ConnectionError("Redis was away a moment ago.")
            try:
                self._connection = await self._connect(_Connection, self.address.scripts())
            except (OSError, hiredis.ReplyError) as error:
                self._away = True
                self._note_failure(error)
                raise ConnectionError(str(error)) from error
            if self._away:
                log.info("Redis is back")
            self._away = False
            self._note_success()
            return self._connection

    def _note_failure(self, error: Exception) -> None:
        self._distrusted = error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else ""
        self._failures += 1
        self._not_before = asyncio.get_running_loop().time() + backoff_s(self._failures)

    def _note_success(self) -> None:
        """Have all who wait to connect again do so now."""
        self._failures, self._not_before, self._distrusted = 0, 0.0, ""
        self._reached.set()
        self._reached = asyncio.Event()

    async def _pause(self) -> None:
        """Wait until it is time to connect again, or until another connection has been made."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._not_before):
                await self._reached.wait()

    async def _connect(self, protocol: Callable[[], C], more: Iterable[tuple[Word, ...]] = ()) -> C:
        """Open a connection that speaks `protocol`, and greet. Raises OSError, ReplyError."""
        at, loop = self.address, asyncio.get_running_loop()
        if at.path:
            _, connection = await loop.create_unix_connection(protocol, at.path)
        else:
            _, connection = await loop.create_connection(protocol, at.host, at.port, ssl=at.tls)
        try:
            await asyncio.gather(*(connection.send(words) for words in (*at.greeting(), *more)))
        except BaseException:
            connection.close()
            raise
        return connection

    async def close(self) -> None:
        """Close the connection; a later call opens a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
            await asyncio.sleep(0)

    async def another(self, protocol: Callable[[], C]) -> C:
        """Open a connection of the caller's own that speaks `protocol`, trying for as long as Redis is away."""
        while True:
            try:
                async with asyncio.timeout(DEADLINE_S):
                    connection = await self._connect(protocol)
            except (OSError, TimeoutError, hiredis.ReplyError) as error:
                self._note_failure(error)
                await self._pause()
            else:
                self._note_success()
                return connection

    async def listen(
        self, channels: list[str], tell: Callable[[bytes, bytes], None], connected: Callable[[], None]
    ) -> None:
        """Subscribe to `channels` until cancelled: `tell(channel, message)` for each message.

        Connects again after every loss and calls `connected`, since messages may have been missed before; by then
        steps are carried out again, too.
        """
        while True:
            connection = await self.another(lambda: _Listening(tell))
            try:
                with contextlib.suppress(OSError, TimeoutError, hiredis.ReplyError):
                    await connection.send(("SUBSCRIBE", *channels), DEADLINE_S)
                    await self._serves()
                    connected()
                    await connection.stay()
            finally:
                connection.close()
            await asyncio.sleep(random.uniform(0.1, 0.5))  # noqa: S311  whoever has lost it does not come at once

    async def _serves(self) -> None:
        """Return once steps are carried out: Redis takes subscriptions while it still reads what it has kept."""
        while self._connection is None or self._connection.broken:
            try:
                async with asyncio.timeout(DEADLINE_S):
                    await self._connected()
            except (OSError, TimeoutError):
                await self._pause()
