"""Attempts: how a worker or an agent takes a job, says what it does, and ends it; each step fenced by its number."""

import base64
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import orjson

from storage import queues
from storage.calls import Call, script, text
from storage.errors import NotFound, Stale, Unauthenticated
from storage.seal import Forged, Seal


class Unregistered(Unauthenticated):
    """The worker's registration is not, or no longer, the current one of its name."""

    code = "UNREGISTERED"


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds attempts: a worker or agent by its id and its current registration."""

    worker: str
    registration: str


@dataclass(frozen=True, slots=True)
class Claim:
    """One attempt as handed out: `lines` is how many lines of log the job already has, `owner` whose command it is.

    An owner "" is one that nobody knows for sure.
    """

    job_id: str
    attempt: int
    queue: str
    spec: bytes
    signature: str
    lines: int
    owner: str = ""

    def read_spec(self, seal: Seal) -> dict[str, Any]:
        """Return what shall be done. Raises Forged unless Hostler itself wrote it for this very job."""
        seal.check("job", self.signature, self.job_id, self.spec)
        spec = orjson.loads(self.spec)
        if not isinstance(spec, dict):
            raise Forged(f"The payload of job {self.job_id!r} is not an object.")
        if "env" in spec:
            spec["env"] = seal.decrypt_json("environment", spec["env"], bound_to=self.job_id)
        if "hidden" in spec:
            spec |= seal.decrypt_json("arguments", spec.pop("hidden"), bound_to=self.job_id)
        return spec


@dataclass(frozen=True, slots=True)
class Beaten:
    """What a heartbeat brought back: attempts that are lost, jobs to be cancelled, and when to send the next."""

    lost: list[str]
    cancel: list[str]
    next_s: float | None = None  #: None: as the worker has it


@dataclass(frozen=True, slots=True)
class Held:
    """What a call of an agent brought back: which of its jobs to cancel, and the attempts that it holds."""

    cancel: list[str]
    held: list[tuple[str, int]]


@dataclass(frozen=True, slots=True)
class Polled:
    """What an agent's poll found, and its tags (JSON).

    `silent`: it has missed its heartbeats, so it got nothing; `drained`: it is to get nothing for now.
    """

    tags: str
    claims: Sequence[Claim] = ()
    refused: Sequence[str] = ()
    beats: bool = False
    silent: bool = False
    drained: bool = False


@dataclass(frozen=True, slots=True)
class Received:
    """What became of a piece of output: the next line's number, whether the quota is full, whether to cancel."""

    next_line: int
    full: bool
    cancel: bool


def rq_time() -> str:
    """Return the time in the form RQ writes into its hashes."""
    second, left_us = divmod(time.time_ns() // 1000, 1_000_000)
    return f"{_second(second)}.{left_us:06d}Z"


@lru_cache(maxsize=2)
def _second(second: int) -> str:
    """Return the time without its fraction, which stays the same for thousands of steps."""
    return datetime.fromtimestamp(second, UTC).isoformat()[:19]


def claim(
    holder: Holder,
    tag_sets: Iterable[str],
    tags: Sequence[str],
    *,
    most: int,
    startable: int,
    lease_s: float,
    own: bool = False,
    hears: bool = False,
    drains: Callable[[bool], None] = lambda drained: None,
) -> Call[tuple[list[Claim], list[str]]]:
    """Take up to `most` jobs from the queues that `tags` cover, with a lease of `lease_s` seconds each.

    `lease_s` 0 means the job's own timeout + 30 s (agents that send no heartbeat). Jobs beyond the first `startable`
    are held ahead. `own`: from the worker's own queue alone, that of its node. `hears`: where there are fewer, the
    worker may be handed what comes (`offered`), under the lease that it registered with. `drains` is told whether an
    operator keeps it from taking any. Answers the claims, and the ids that were refused because they are no jobs of
    ours, or not as Hostler wrote them. Raises Unregistered.
    """
    names = [queues.of_node(holder.worker)] if own else queues.served(tag_sets, tags)
    keys = [queues.key(name) for name in names]

    def read(reply: list[Any]) -> tuple[list[Claim], list[str]]:
        _registered(holder, reply)
        drains(reply[3:] == [b"1"])
        return _claims(reply[1]), [text(job) for job in reply[2]]

    return script(
        "claim", holder.worker, holder.registration, most, int(lease_s * 1000), rq_time(), startable,
        "1" if hears else "", keys=keys, read=read,
    )  # fmt: skip


def poll(
    holder: Holder,
    served: Sequence[str],
    tags: str,
    *,
    most: int,
    startable: int,
    lease_s: float,
    calls: bool,
) -> Call[Polled]:
    """Take up to `most` jobs for an agent from the queues `served`, those of its tags (JSON, as its record has them).

    Those beyond the first `startable` are held ahead.
    `calls`: it has just called, which renews what it holds; else it has been waiting, which is no sign of life. Where
    its tags are others, nothing is taken. Leases are of `lease_s` seconds, or of the job's timeout + 30 s for an agent
    that sends no heartbeats. Raises Unregistered.
    """

    def read(reply: list[Any]) -> Polled:
        _registered(holder, reply)
        if reply[0] == b"silent":
            return Polled(tags, silent=True)
        if reply[0] == b"tags":
            return Polled(text(reply[1]))
        refused = [text(job) for job in reply[2]]
        return Polled(tags, _claims(reply[1]), refused, beats=reply[4] == b"1", drained=reply[3] == b"1")

    return script(
        "claim", holder.worker, holder.registration, most, int(lease_s * 1000), rq_time(), startable, "",
        "calls" if calls else "waits", tags, keys=[queues.key(name) for name in served], read=read,
    )  # fmt: skip


def _claims(reply: list[Any]) -> list[Claim]:
    return [
        Claim(text(job), int(attempt), text(queue), spec, text(signature), int(lines), text(owner))
        for job, attempt, queue, spec, signature, lines, owner in reply
    ]


#: What a message to a worker begins with that hands it a job.
OFFER = b"offer "


def offered(holder: Holder, message: bytes) -> Claim | None:
    """Read the message by which submit.lua hands a job to a worker. Raises ValueError.

    None for what another registration of its name was handed: a worker that was silent may hear what its successor is
    given, and both would be taken for its holder.
    """
    head, _, spec = message.removeprefix(OFFER).partition(b"\n")
    job_id, attempt, queue, signature, owner, registration = head.decode("ascii").split(" ")
    if registration != holder.registration:
        return None
    return Claim(job_id, int(attempt), queue, spec, signature, 0, owner)


def begin(holder: Holder, job_id: str, attempt: int) -> Call[bool]:
    """Say that a job held ahead starts now; answers whether it is still ours."""
    return script("begin", job_id, attempt, holder.worker, read=lambda reply: bool(reply == b"ok"))


def beat(
    holder: Holder,
    held: Iterable[tuple[str, int]],
    *,
    lease_s: float,
    rq_ttl_s: int,
    status: Mapping[str, str | int],
) -> Call[Beaten]:
    """Renew the leases of `held` attempts and note that the worker lives. `rq_ttl_s` 0: not an RQ worker.

    Raises Unregistered.
    """

    def read(reply: list[Any]) -> Beaten:
        _registered(holder, reply)
        return Beaten([text(job) for job in reply[1]], [text(job) for job in reply[2]])

    pairs = [word for job_id, attempt in held for word in (job_id, attempt)]
    return script(
        "beat", holder.worker, holder.registration, int(lease_s * 1000), rq_ttl_s, rq_time(),
        orjson.dumps(dict(status)), *pairs, read=read,
    )  # fmt: skip


def hold(holder: Holder, *, lease_s: float, heartbeat: Mapping[str, str | int] | None = None) -> Call[Held]:
    """Note that an agent called, and renew the leases of all it holds, if it is one that sends heartbeats.

    `heartbeat` is what one says: fields of its record. Raises Unregistered.
    """

    def read(reply: list[Any]) -> Held:
        _registered(holder, reply)
        words = iter(reply[2])
        held = [(text(job), int(attempt)) for job, attempt in zip(words, words, strict=True)]
        return Held([text(job) for job in reply[1]], held)

    given = {} if heartbeat is None else {"beats": 1, **heartbeat}
    return script(
        "hold", holder.worker, holder.registration, int(lease_s * 1000), orjson.dumps(given), read=read
    )


def output(
    holder: Holder,
    job_id: str,
    attempt: int | None,
    channel: str,
    data: bytes,
    *,
    first_line: int | None,
    line_count: int,
    live_bytes: int,
    limit_bytes: int,
) -> Call[Received]:
    """Append output (`channel` o or e) of an attempt; None for `attempt` means the one its holder last claimed.

    `first_line` numbers the first line, so that a repeated piece counts once; None appends. Raises Stale, NotFound.
    """

    def read(reply: list[bytes]) -> Received:
        _standing(job_id, text(reply[0]))
        return Received(int(reply[1]), reply[0] == b"full", bool(reply[2]))

    return script(
        "output", job_id, "" if attempt is None else attempt, holder.worker,
        "" if first_line is None else first_line, line_count, channel, live_bytes, limit_bytes, data, read=read,
    )  # fmt: skip


def progress(holder: Holder, job_id: str, attempt: int | None, percent: int) -> Call[None]:
    """Note that an attempt is `percent` done. Raises Stale, NotFound."""
    return script(
        "progress", job_id, "" if attempt is None else attempt, holder.worker, percent,
        read=lambda reply: _standing(job_id, text(reply)),
    )  # fmt: skip


def attach(  # noqa: PLR0917  the words of the step, in its order
    holder: Holder, job_id: str, attempt: int | None, kind: str, name: str, record: Mapping[str, Any]
) -> Call[None]:
    """Register an object that an attempt left: `kind` is artifacts or logparts. Raises Stale, NotFound."""
    return script(
        "attach", job_id, "" if attempt is None else attempt, holder.worker, kind, name, orjson.dumps(dict(record)),
        read=lambda reply: _standing(job_id, text(reply)),
    )  # fmt: skip


def settle(  # noqa: PLR0917  as above
    holder: Holder,
    job_id: str,
    attempt: int | None,
    outcome: str,
    reason: str = "",
    exit_code: int | None = None,
    facts: Mapping[str, str | int] | None = None,
    *,
    begins: Iterable[tuple[str, int]] = (),
    begun: Callable[[list[str]], None] = lambda lost: None,
) -> Call[str]:
    """End an attempt as completed, failed, cancelled, or released (handed back); answers the job's state after it.

    In the same step the held attempts `begins` start, whatever becomes of the one that ends; `begun` is told which of
    them are not ours any more. Safe to repeat: a second time answers the state and changes nothing. Raises Stale,
    NotFound.
    """

    def read(reply: list[Any]) -> str:
        begun([text(lost) for lost in reply[2]])
        standing = text(reply[0])
        if standing not in {"ok", "replay"}:
            _standing(job_id, standing)
        return text(reply[1])

    exit_word: str | int = "" if exit_code is None else exit_code
    return script(
        "settle", job_id, "" if attempt is None else attempt, holder.worker, outcome, reason, exit_word, rq_time(),
        _result(exit_code, reason), random.uniform(0.8, 1.2),  # noqa: S311  jitter, not a secret
        2 * len(facts or ()), *[word for name, fact in (facts or {}).items() for word in (name, _plain(fact))],
        *[word for each in begins for word in each], read=read,
    )  # fmt: skip


def _plain(fact: str | int) -> str | int:
    return fact if isinstance(fact, str) else int(fact)  # a signal has a type of its own


@lru_cache(maxsize=64)
def _result(exit_code: int | None, reason: str) -> bytes:
    """Return what RQ's readers find as the result of a job; nearly all have one of a few."""
    return base64.b64encode(orjson.dumps({"exit": exit_code, "reason": reason}))


def _registered(holder: Holder, reply: list[Any]) -> None:
    if reply[0] == b"unregistered":
        raise Unregistered(f"Worker {holder.worker!r} has been registered anew, or removed, since.")


def _standing(job_id: str, standing: str) -> None:
    if standing == "unknown":
        raise NotFound("Job not found")
    if standing == "stale":
        raise Stale(f"Job {job_id!r} is not, or no longer, held by this worker.")
    if standing == "over":
        raise Stale(f"Job {job_id!r} is already over.")
