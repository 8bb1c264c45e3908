"""The line of `hostler agent`: the Line of an executor over HTTP, with the guarantees that a worker has.

Every call may be repeated: attempts, line numbers and results are fenced by the API.
"""

import asyncio
import codecs
import contextlib
import email.message
import email.utils
import hashlib
import os
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import httpx

from storage.attempts import Beaten, Received
from storage.errors import (
    Conflict,
    HostlerError,
    Invalid,
    NotFound,
    Stale,
    TooLarge,
    Unauthenticated,
)
from workers.control_plane import BULKY, ControlPlane
from workers.exchanging import MOST_AT_ONCE, Exchanges, Key, NoExchanges
from workers.lines import IntegrityError, Offer
from workers.log import log
from workers.output import PIECE_BYTES

#: How long a poll waits for work at the API; proxies cut connections that stay silent for 30 s.
POLL_WAIT_S = 20.0
#: No two polls of a slot begin closer to each other, should the API answer at once that there is nothing.
POLL_EVERY_S = 1.0
LONGEST_PAUSE_S = 30.0
#: How long output waits while the API's rate is nearly used up.
RESERVE_PAUSE_S = 0.2
CHUNK_BYTES = 256 * 1024
#: So many offers that came too late are remembered.
_DISOWNED = 1000
#: A poll that brings a job so soon has found a queue that holds several, perhaps.
SOON_S = 0.25


@dataclass(slots=True)
class _Taken:
    """What is known of an attempt that this agent took: under which registration, and its unfinished characters."""

    registration: int
    decoders: dict[str, codecs.IncrementalDecoder] = field(default_factory=dict)


class HttpLine:
    """A line over HTTP to a control plane where this agent is registered."""

    tells_of_work = False  # a claim is what makes a poll wait for each free slot

    def __init__(self, api: ControlPlane, *, poll_wait_s: float = POLL_WAIT_S) -> None:
        self.name = api.name
        self._api, self._exchanges = api, Exchanges(api)
        self._flows = False  # whether queues hold more than we took, as far as we know
        self._poll_path = f"/api/jobs/get-job?wait={poll_wait_s:g}"
        self._poll_timeout = httpx.Timeout(10.0, read=poll_wait_s + 10.0)
        self._poll_every_s = min(POLL_EVERY_S, poll_wait_s)
        self._wake: Callable[[str], None] = lambda queue: None
        self._polls: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._handing_back: asyncio.Task[None] | None = None
        self._received: deque[Offer] = deque()
        self._taken: dict[Key, _Taken] = {}
        self._unknown: set[Key] = set()
        self._disowned: deque[Key] = deque(maxlen=_DISOWNED)
        self._ended = 0

    # Taking work

    def listen(
        self, wake: Callable[[str], None], cancel: Callable[[str], None], take: Callable[[Offer], None]
    ) -> "asyncio.Task[None]":
        """Call `wake` when a poll brings work; what to cancel comes with heartbeats and answers to output."""
        self._wake = wake
        wake("")
        return asyncio.create_task(self._poll_until_cancelled())

    async def _poll_until_cancelled(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.stop_polling()

    def stop_polling(self) -> None:
        """Take no more work, and hand back what nobody has claimed. Safe to repeat."""
        self._stopping = True
        for poll in self._polls:
            poll.cancel()
        if self._received and (self._handing_back is None or self._handing_back.done()):
            self._handing_back = asyncio.create_task(self._hand_back())

    async def _hand_back(self) -> None:
        while self._received:
            with contextlib.suppress(HostlerError):  # its lease runs out
                await self.settle(self._received.popleft(), "released", "unstarted", None, {})

    async def claim(self, *, most: int, startable: int) -> list[Offer]:
        """Take what polls have brought, and let a poll wait at the API for each free slot that is left.

        Where results leave anyway, or while queues hold more, it is asked for what is there instead, also ahead of
        slots that will soon be free.
        """
        offers = self.brought()
        taken = len(offers) + len(self._polls)  # slots that need nothing more
        more, free = min(most - taken, MOST_AT_ONCE), max(0, startable - taken)
        if more > 0 and not offers and self._asks_rather(ahead=more > free):  # what is there starts at once
            offers = await self._ask(more, free)
            free -= len(offers)
        for _ in range(0 if self._stopping else free):
            poll = asyncio.create_task(self._poll())
            self._polls.add(poll)
            poll.add_done_callback(self._poll_ended)
        return offers

    def brought(self) -> list[Offer]:
        """Return what polls have brought: a slot may have got another job while its poll waited."""
        offers = [*self._received]
        self._received.clear()
        return offers

    def _asks_rather(self, *, ahead: bool) -> bool:
        exchanges = self._exchanges
        return not self._stopping and exchanges.possible and (exchanges.speaks or (self._flows and ahead))

    async def _ask(self, most: int, startable: int) -> list[Offer]:
        try:
            found = await self._exchanges.ask(most=most, startable=startable)
        except NoExchanges:
            return []
        self._flows = len(found) >= most
        return [offer for offer in map(self._taken_offer, found) if offer is not None]

    def _poll_ended(self, poll: "asyncio.Task[None]") -> None:
        self._polls.discard(poll)
        if not poll.cancelled() and (error := poll.exception()) is not None:
            log.error("a poll for work ended", exc_info=error)
        self._wake("")

    async def _poll(self) -> None:
        """Ask until there is a job."""
        loop = asyncio.get_running_loop()
        pause_s = 0.25
        while True:
            began = loop.time()
            try:
                answer = await self._api.call("GET", self._poll_path, timeout=self._poll_timeout)
                if (job := answer.get("job")) and (offer := self._taken_offer(job)) is not None:
                    self._flows = loop.time() - began < SOON_S
                    self._received.append(offer)
                    return
                pause_s = 0.25
                await asyncio.sleep(max(0.0, self._poll_every_s - (loop.time() - began)))
            except HostlerError as error:
                log.warning("cannot ask for work for now", extra={"why": str(error)})
                asked_s = float(getattr(error, "retry_after_s", 0))
                wait_s = min(LONGEST_PAUSE_S, max(pause_s, asked_s if asked_s > 1 else 0))
                await asyncio.sleep(wait_s * random.uniform(0.8, 1.2))  # noqa: S311  jitter
                pause_s = min(5.0, pause_s * 2)

    def _taken_offer(self, job: Mapping[str, Any]) -> Offer | None:
        """Note a job that an answer brought; None for one that we have disowned while the answer was on its way."""
        offer = self._offer(job)
        key = offer.key
        if key in self._disowned:
            return None
        # should this be a newer registration than the one that took it, the API refuses the attempt itself
        self._taken[key] = _Taken(self._api.registration)
        return offer

    def _offer(self, job: Mapping[str, Any]) -> Offer:
        spec: dict[str, Any] = {
            "command": job.get("command"), "argv": job.get("argv"), "env": job.get("env") or {},
            "working_directory": job.get("workingDirectory"), "timeout_s": job.get("timeout"),
            "artifacts": job.get("artifacts") or [], "retries": job.get("retries") or 0,
            "at_most_once": bool(job.get("atMostOnce")),
        }  # fmt: skip
        if job.get("fileId"):
            spec["file"] = f"/api/files/download/{quote(str(job['fileId']), safe='')}"
        elif url := job.get("fileUrl"):
            path = self._api.path_of(str(url))
            spec["file" if path else "file_url"] = path or str(url)
        lines, ahead = int(job.get("lines") or 0), bool(job.get("heldAhead"))
        return Offer(str(job["jobId"]), int(job["attempt"]), spec, lines, ahead)

    async def begin(self, offer: Offer) -> bool:
        """Say that a held job starts; answers whether it is still ours. An API that cannot be told gets it back."""
        try:
            return self._is_ours(offer.key) and await self._exchanges.begin(offer.key)
        except NoExchanges:
            await self.settle(offer, "released", "unstarted", None, {})
            return False

    def begin_unheard(self, offer: Offer, lost: Callable[[], None]) -> None:
        """Say that a held job starts, with whatever is said next."""
        self._exchanges.begin_unheard(offer.key, lost)

    # Saying what happens

    async def beat(self, held: Iterable[Offer], *, running: int, current: str | None) -> Beaten:
        """Send a heartbeat, which renews the leases of all that we hold; answers what is lost or to be cancelled.

        What we took under an earlier registration is lost. What the API believes us to hold, but no poll has brought
        (its answer got lost), is handed back, for heartbeats would renew its lease for ever.
        """
        runs = {offer.key for offer in held}
        keys = runs | {offer.key for offer in self._received}
        over = self._taken.keys() - keys
        said = {
            "status": "busy" if running else "idle", "currentJobId": current, "jobsCompleted": self._ended,
            "jobs": [{"jobId": job_id, "attempt": attempt} for job_id, attempt in sorted(keys)],
        }  # fmt: skip
        answer = await self._api.renewed(lambda: self._api.beat(said))
        for key in over:
            self._taken.pop(key, None)
        lost = {key for key in keys if not self._is_ours(key)}
        lost |= {key for key in keys if key[0] in _ids(answer.get("lost"))}
        if isinstance(answer.get("held"), list):
            theirs = {(str(each["jobId"]), int(each["attempt"])) for each in answer["held"]}
            lost |= keys - theirs
            await self._disown(theirs - keys - self._taken.keys())
        self._received = deque(offer for offer in self._received if offer.key not in lost)
        return Beaten(
            [job_id for job_id, _ in lost & runs], _ids(answer.get("cancel")), self._api.heartbeat_s
        )

    async def _disown(self, orphans: set[Key]) -> None:
        """Hand back what two heartbeats in a row told us that we hold, and no poll has brought."""
        for job_id, attempt in orphans & self._unknown:
            log.warning("handing back a job whose offer got lost", extra={"job": job_id, "attempt": attempt})
            self._disowned.append((job_id, attempt))  # should its offer arrive after all, nobody runs it
            with contextlib.suppress(HostlerError):  # the next heartbeat tells of it again
                await self._settle((job_id, attempt), {"status": "released"})
        self._unknown = orphans

    async def output(
        self, offer: Offer, channel: str, data: bytes, *, first_line: int, line_count: int
    ) -> Received:
        """Append output, as text: what is not UTF-8 is replaced."""
        taken = self._ours(offer)
        decoder = taken.decoders.setdefault(channel, codecs.getincrementaldecoder("utf-8")("replace"))
        before = decoder.getstate()
        unended = line_count > data.count(b"\n")
        # a long line may be broken within a character; another one without an end is the last
        text = decoder.decode(data, final=unended and len(data) < PIECE_BYTES)
        body = {
            "jobId": offer.job_id, "attempt": offer.attempt, "data": text, "firstLine": first_line,
            "type": "stdout" if channel == "o" else "stderr", "lineCount": line_count,
        }  # fmt: skip
        if self._api.low_on_rate:
            await asyncio.sleep(RESERVE_PAUSE_S)
        try:
            answer = await self._api.call("POST", "/api/jobs/stream-output", body)
        except BaseException:
            decoder.setstate(before)  # it will be sent again, and must be the same
            raise
        next_line = int(answer.get("nextLine", first_line + line_count))
        return Received(next_line, bool(answer.get("full")), bool(answer.get("cancelRequested")))

    async def progress(self, offer: Offer, percent: int) -> None:
        """Do nothing: the API reads progress out of the output by itself."""

    async def settle(
        self, offer: Offer, outcome: str, reason: str, exit_code: int | None, facts: Mapping[str, str | int]
    ) -> str:
        """End an attempt."""
        self._ours(offer)
        spelled = {
            "cpuMs": "cpu_ms", "maxRssBytes": "max_rss_bytes", "signal": "signal", "error": "message",
            "truncated": "truncated",
        }  # fmt: skip
        said = {name: facts[fact] for name, fact in spelled.items() if fact in facts}
        result = {"status": outcome, "reason": reason or None, "exitCode": exit_code, **said}
        try:
            state = await self._exchanges.end(offer.key, result)
        except NoExchanges:
            state = await self._settle(offer.key, result)
        self._taken.pop(offer.key, None)
        self._ended += outcome != "released"
        return state

    async def _settle(self, key: Key, result: Mapping[str, Any]) -> str:
        body = {
            "jobId": key[0], "attempt": key[1], "workerId": self.name, "stdout": "", "stderr": "", **result
        }  # fmt: skip
        return str((await self._api.call("POST", "/api/jobs/submit-result", body)).get("status", ""))

    def _is_ours(self, key: Key) -> bool:
        taken = self._taken.get(key)
        return taken is not None and taken.registration == self._api.registration

    def _ours(self, offer: Offer) -> _Taken:
        """Return what is known of an attempt. Raises Stale, without asking, for one of an earlier registration."""
        if not self._is_ours(offer.key):
            raise Stale(f"Job {offer.job_id!r} was taken by an earlier registration of this agent.")
        return self._taken[offer.key]

    # Files

    async def fetch_file(
        self, offer: Offer, into: Path, *, limit_bytes: int, cancelled: Callable[[], bool] = lambda: False
    ) -> str:
        """Download the upload that the job works on from the API, with our token; answers its name."""
        self._ours(offer)
        path, digest, size_bytes = str(offer.spec["file"]), hashlib.sha256(), 0
        async with self._api.download(path) as response:
            with into.open("wb") as file:
                async for chunk in response.aiter_bytes(CHUNK_BYTES):
                    if cancelled():
                        raise InterruptedError("The download was called off.")
                    size_bytes += len(chunk)
                    if size_bytes > limit_bytes:
                        raise TooLarge(f"The job's file is larger than {limit_bytes:,} bytes.")
                    digest.update(chunk)
                    await asyncio.to_thread(file.write, chunk)
            headers = response.headers
        expected = headers.get("etag", "").strip('"')  # the API's tags are digests
        if len(expected) == 64 and expected != digest.hexdigest():
            raise IntegrityError("The job's file is not what was uploaded: its sha256 differs.")
        return _file_name(headers) or PurePosixPath(unquote(urlsplit(path).path)).name

    async def put_artifact(self, offer: Offer, name: str, path: Path) -> None:
        """Store a file that the job left. Raises Invalid where the API does not take it."""
        self._ours(offer)
        url = f"/api/jobs/{quote(offer.job_id, safe='')}/artifacts/{quote(name)}?attempt={offer.attempt}"
        size_bytes = (await asyncio.to_thread(path.stat)).st_size
        try:
            await self._put("PUT", url, lambda: _chunks(path), size_bytes)
        except Stale:
            raise
        except Conflict as error:  # there are too many: no news about the attempt
            raise Invalid(str(error)) from error

    async def put_log(self, offer: Offer, frames: bytes, *, first_line: int, next_line: int) -> None:
        """Store a part of the log that is too long for Redis."""
        self._ours(offer)
        lines = f"first={first_line}&next={next_line}"
        url = f"/api/jobs/{quote(offer.job_id, safe='')}/log?attempt={offer.attempt}&{lines}"
        await self._put("POST", url, lambda: frames, len(frames))

    async def _put(self, method: str, url: str, content: Callable[[], Any], size_bytes: int) -> None:
        headers = {"content-type": "application/octet-stream", "content-length": str(size_bytes)}
        await self._api.call(method, url, more=headers, content=content, timeout=BULKY)

    # Leaving

    async def depart(self, reason: str) -> None:
        """Hand back what came too late to be started, and say goodbye. Raises Unavailable."""
        self.stop_polling()
        await asyncio.gather(*self._polls, return_exceptions=True)
        if self._handing_back is not None:
            await self._handing_back
        await self._exchanges.close()
        with contextlib.suppress(Unauthenticated, NotFound):
            await self._api.beat({"status": "offline", "reason": reason, "jobs": []})


def _ids(given: Any) -> list[str]:
    return [str(each) for each in given] if isinstance(given, list) else []


def _file_name(headers: httpx.Headers) -> str | None:
    """Return the file name in a Content-Disposition; the one in full (`filename*`) if there are two (RFC 6266)."""
    message = email.message.Message()
    message["Content-Disposition"] = headers.get("content-disposition", "")
    found = [value for name, value in message.get_params([], "content-disposition") if name == "filename"]
    in_full: list[Any] = [value for value in found if isinstance(value, tuple)]
    return email.utils.collapse_rfc2231_value((in_full or found)[0]) if found else None


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb", buffering=0) as file:
        while chunk := await asyncio.to_thread(os.read, file.fileno(), CHUNK_BYTES):
            yield chunk
