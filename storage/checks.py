"""Whether what Hostler stands on is fit for it: each check says what it found, and how to mend it.

`hostler doctor` shows them all, and the web process runs the same ones when it starts.
"""

import asyncio
import logging
import secrets
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import hiredis

from settings import is_loopback
from storage import backups, fleet
from storage.calls import command, text
from storage.errors import HostlerError
from storage.store import Store

if TYPE_CHECKING:
    import httpx

log = logging.getLogger("hostler.storage")

OK, WARN, FAIL = "ok", "warn", "fail"

OLDEST_VERSION = (6, 2)
#: The first release of each line without CVE-2025-49844 (Lua leaves its sandbox), and, for 8.6, CVE-2026-23479.
PATCHED: Mapping[str, Mapping[tuple[int, ...], tuple[int, ...]]] = {
    "redis": {
        (6, 2): (6, 2, 20), (7, 2): (7, 2, 11), (7, 4): (7, 4, 6), (8, 0): (8, 0, 4), (8, 2): (8, 2, 2),
        (8, 6): (8, 6, 3),
    },
    "valkey": {(7, 2): (7, 2, 11), (8, 0): (8, 0, 6), (8, 1): (8, 1, 4)},
}  # fmt: skip
#: Lines after these began with the fix of the first.
PATCHED_SINCE: Mapping[str, tuple[int, ...]] = {"redis": (8, 2), "valkey": (8, 1)}
SLOW_S = 0.1
MOST_MEMORY = 0.8
MOST_CLOCK_OFFSET_S = 2.0
#: A job that has waited for so long in a queue that workers serve deserves a look.
LONG_WAIT_S = 3600.0
#: What is due by time, or a lease that ran out, is dealt with well before that while a scheduler leads.
OVERDUE_S = 30.0


@dataclass(frozen=True, slots=True)
class Check:
    """What one check found: `status` is ok, warn or fail; `remedy` says how to mend it, empty when all is well."""

    name: str
    status: str
    message: str
    remedy: str = ""


class Volatile(HostlerError):
    """Redis may lose or evict what it was given."""

    code = "VOLATILE_REDIS"


async def everything(store: Store) -> list[Check]:
    """Run all checks: those of Redis first, and those that need it only if it answers."""
    redis = await redis_checks(store)
    if redis[0].status == FAIL:
        return [*redis, *await s3_checks(store)]
    rest = await asyncio.gather(
        secret_checks(store),
        s3_checks(store),
        queue_checks(store),
        fleet_checks(store),
        scheduler_checks(store),
        recovery_checks(store),
        backup_checks(store),
    )
    return [*redis, *(check for checks in rest for check in checks)]


async def refuse_volatile(store: Store) -> None:
    """Raise Volatile when Redis may lose or evict data, unless HOSTLER_ALLOW_VOLATILE is set; log what is unsure.

    Raises Unavailable when Redis is away.
    """
    facts = await _redis_facts(store)
    for check in (_append_only(facts), _eviction(facts)):
        if check.status == FAIL and not store.settings.allow_volatile:
            raise Volatile(f"{check.message} {check.remedy} HOSTLER_ALLOW_VOLATILE=1 accepts the risk.")
        if check.status != OK:
            log.warning(check.message, extra={"check": check.name, "remedy": check.remedy})


# Redis


@dataclass(frozen=True, slots=True)
class _Redis:
    """What Redis says of itself. `config` is None where it keeps its configuration to itself."""

    info: Mapping[str, str]
    config: Mapping[str, str] | None
    latency_s: float
    clock_offset_s: float


async def redis_checks(store: Store) -> list[Check]:
    """Check that Redis is there, recent, keeps what it is given, has room, and knows the time."""
    try:
        facts = await _redis_facts(store)
    except (HostlerError, hiredis.ReplyError) as error:
        remedy = "Start it, or set REDIS_URL to where it is; a wrong password looks the same."
        if "certificate" in str(error):
            remedy = "Set HOSTLER_REDIS_CA_FILE to the authority's certificate (docs/redis-and-s3.md)."
        return [Check("redis", FAIL, str(error), remedy)]
    checks = (_latency, _version, _append_only, _fsync, _eviction, _memory, _role, _writes, _clock)
    return [*(check(facts) for check in checks), _exposure(store)]


async def _redis_facts(store: Store) -> _Redis:
    await store.call(command("PING"))  # connects, which is not to be measured
    began = time.perf_counter()
    await store.call(command("PING"))
    latency_s = time.perf_counter() - began
    seconds, micros = await store.call(command("TIME"))
    here_s = store.now_ms() / 1000
    info = _parse_info(text(await store.call(command("INFO"))))
    return _Redis(info, await _config(store), latency_s, int(seconds) + int(micros) / 1e6 - here_s)


async def _config(store: Store) -> dict[str, str] | None:
    """Return the settings that matter; managed services rename or forbid CONFIG."""
    found = {}
    try:
        for name in ("appendonly", "appendfsync", "maxmemory-policy"):
            reply = await store.call(command("CONFIG", "GET", name))
            found[name] = text(reply[1]) if len(reply) == 2 else ""
    except hiredis.ReplyError:
        return None
    return found


def _parse_info(reply: str) -> dict[str, str]:
    lines = (line.partition(":") for line in reply.splitlines() if line and not line.startswith("#"))
    return {name: value for name, _, value in lines}


def _latency(facts: _Redis) -> Check:
    found = f"Redis answers within {facts.latency_s * 1000:.1f} ms."
    if facts.latency_s < SLOW_S:
        return Check("redis", OK, found)
    return Check(
        "redis", WARN, found, "Run it nearer to Hostler, or find out what keeps it busy (SLOWLOG GET)."
    )


def _version(facts: _Redis) -> Check:
    brand = "valkey" if "valkey_version" in facts.info else "redis"
    said = facts.info.get(f"{brand}_version", "0")
    version = tuple(int(part) for part in said.split(".") if part.isdigit())
    found = f"{brand.title()} {said}."
    if version < OLDEST_VERSION:
        return Check("redis version", FAIL, found, "Upgrade to Redis 6.2 or newer, or to Valkey.")
    patched = PATCHED[brand].get(version[:2])
    if version >= patched if patched is not None else version[:2] > PATCHED_SINCE[brand]:
        return Check("redis version", OK, found)
    upgrade = ".".join(str(part) for part in patched or PATCHED[brand][PATCHED_SINCE[brand]])
    return Check(
        "redis version",
        WARN,
        f"{found} It has known holes that newer ones mend.",
        f"Upgrade to {upgrade} or newer.",
    )


def _append_only(facts: _Redis) -> Check:
    name = "redis persistence"
    if facts.config is not None:
        if facts.config["appendonly"] == "yes":
            return Check(name, OK, "Redis keeps an append-only file.")
        remedy = "Run CONFIG SET appendonly yes, and put it into redis.conf."
        return Check(name, FAIL, "Redis keeps no append-only file: a crash loses accepted jobs.", remedy)
    if facts.info.get("aof_enabled") == "1":
        return Check(name, OK, "Redis keeps an append-only file.")
    remedy = "Choose a plan of the provider's that keeps an append-only file, or a replica in another zone."
    return Check(
        name, WARN, "Redis says that it keeps no append-only file, and hides its configuration.", remedy
    )


def _fsync(facts: _Redis) -> Check:
    name, policy = "redis fsync", (facts.config or {}).get("appendfsync", "")
    if not policy:
        return Check(
            name,
            WARN,
            "Redis hides how often it writes to disk.",
            "Ask the provider for appendfsync everysec.",
        )
    if policy == "no":
        remedy = "Run CONFIG SET appendfsync everysec."
        return Check(
            name, FAIL, "Redis leaves writing to disk to the operating system (appendfsync no).", remedy
        )
    return Check(name, OK, f"Redis writes to disk with appendfsync {policy}.")


def _eviction(facts: _Redis) -> Check:
    name, policy = "redis eviction", facts.info.get("maxmemory_policy", "")
    policy = (facts.config or {}).get("maxmemory-policy") or policy
    if policy == "noeviction":
        return Check(name, OK, "Redis evicts nothing.")
    if facts.config is None:
        remedy = "Choose noeviction in the provider's console."
        return Check(name, WARN, f"Redis may evict data (policy {policy or 'unknown'}).", remedy)
    remedy = "Run CONFIG SET maxmemory-policy noeviction, and put it into redis.conf."
    return Check(name, FAIL, f"Redis evicts data when memory is short (maxmemory-policy {policy}).", remedy)


def _memory(facts: _Redis) -> Check:
    used, most = int(facts.info.get("used_memory", 0)), int(facts.info.get("maxmemory", 0))
    if not most:
        return Check("redis memory", OK, f"Redis uses {used / 1e6:.0f} MB and has no limit of its own.")
    found = f"Redis uses {used / 1e6:.0f} of {most / 1e6:.0f} MB."
    if used < MOST_MEMORY * most:
        return Check("redis memory", OK, found)
    remedy = "Raise maxmemory, or lower HOSTLER_FINISHED_KEEP_DAYS."
    return Check(
        "redis memory", FAIL if used >= most else WARN, f"{found} When it is full, submits fail.", remedy
    )


def _role(facts: _Redis) -> Check:
    role = facts.info.get("role", "unknown")
    if role == "master":
        return Check("redis role", OK, "Redis is a primary.")
    return Check(
        "redis role", FAIL, f"Redis is a {role}, which takes no writes.", "Point REDIS_URL at the primary."
    )


def _writes(facts: _Redis) -> Check:
    names = ("aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status")
    bad = [name for name in names if facts.info.get(name, "ok") != "ok"]
    if not bad:
        return Check("redis disk", OK, "The last writes of Redis to its disk succeeded.")
    remedy = "Look into Redis's log; most often its disk is full or not writable."
    worst = FAIL if names[0] in bad else WARN
    return Check("redis disk", worst, f"Redis could not write to its disk ({', '.join(bad)}).", remedy)


def _clock(facts: _Redis) -> Check:
    offset_s = facts.clock_offset_s
    found = f"The clocks of Redis and of this machine differ by {abs(offset_s):.1f} s."
    if abs(offset_s) < MOST_CLOCK_OFFSET_S:
        return Check("redis clock", OK, found)
    return Check("redis clock", FAIL, found, "Have both machines take the time from NTP.")


def _exposure(store: Store) -> Check:
    at = store.wire.address
    if at.path is not None or is_loopback(at.host):
        return Check("redis access", OK, "Redis is reached inside this machine.")
    if not at.password:
        remedy = "Give it a password (requirepass, or an ACL user), and put it into REDIS_URL."
        return Check("redis access", FAIL, f"Redis at {at.host} asks for no password.", remedy)
    if at.tls is None:
        remedy = "Use rediss://, unless a private network or a mesh encrypts what passes there."
        return Check("redis access", WARN, f"The connection to Redis at {at.host} is not encrypted.", remedy)
    if at.tls.verify_mode == ssl.CERT_NONE:
        found = "The connection to Redis is encrypted, but nobody looks at who answers."
        remedy = "Set HOSTLER_REDIS_CA_FILE to the authority's certificate, where the provider hands it out."
        return Check("redis access", WARN, found, remedy)
    return Check("redis access", OK, "Redis asks for a password, over TLS.")


# The rest


async def secret_checks(store: Store) -> list[Check]:
    """Check that HOSTLER_SECRET_KEY opens what is stored."""
    try:
        await store.keyring.check()
    except HostlerError as error:
        remedy = "Set the HOSTLER_SECRET_KEY that the data was written under."
        return [Check("secret key", FAIL, str(error), remedy)]
    return [Check("secret key", OK, "HOSTLER_SECRET_KEY opens what is stored.")]


async def s3_checks(store: Store) -> list[Check]:
    """Check that the bucket is there, and takes, gives, presigns and deletes an object."""
    objects, key = store.objects, f"doctor/{secrets.token_hex(8)}"
    where = store.settings.s3_endpoint_url or "AWS"
    try:
        latency_s = await objects.check()
    except HostlerError as error:
        remedy = (
            "Set S3_ENDPOINT_URL, S3_BUCKET and the credentials; hostler doctor --prepare makes the bucket."
        )
        return [Check("s3 bucket", FAIL, f"Bucket {objects.bucket!r} at {where}: {error}", remedy)]
    found = [Check("s3 bucket", OK, f"Bucket {objects.bucket!r} is there, within {latency_s * 1000:.0f} ms.")]
    data = secrets.token_bytes(1024)

    async def put() -> None:
        await objects.put(key, data)

    async def get() -> None:
        if await objects.get(key, limit_bytes=len(data)) != data:
            raise HostlerError("It gave back something else than it was given.")

    async def delete() -> None:
        await objects.delete(key)

    steps: dict[str, tuple[Callable[[], Awaitable[None]], str]] = {
        "s3 put": (put, "Allow s3:PutObject on the bucket."),
        "s3 get": (get, "Allow s3:GetObject on the bucket."),
        "s3 presigned URL": (
            lambda: _fetch_presigned(store, key, data),
            "Set S3_PUBLIC_ENDPOINT_URL to how clients reach S3.",
        ),
        "s3 conditional PUT": (
            lambda: _put_presigned_again(store, key),
            "Take a store that knows If-None-Match: with this one, who has put a file may replace it for an hour.",
        ),
        "s3 delete": (delete, "Allow s3:DeleteObject on the bucket."),
    }
    for name, (step, remedy) in steps.items():
        try:
            await step()
            found.append(Check(name, OK, "It works."))
        except HostlerError as error:
            status = WARN if name in {"s3 presigned URL", "s3 conditional PUT"} else FAIL
            found.append(Check(name, status, str(error) or type(error).__name__, remedy))
    return found


async def _fetch_presigned(store: Store, key: str, data: bytes) -> None:
    url = await store.objects.presign_get(key, filename="doctor", expires_s=60)
    answer = await _ask("GET", url)
    if answer.status_code != 200 or answer.content != data:
        raise HostlerError(f"A presigned URL answers {answer.status_code}.")


async def _put_presigned_again(store: Store, key: str) -> None:
    url = await store.objects.presign_put(key, content_type="text/plain", size_bytes=1, expires_s=60)
    answer = await _ask(
        "PUT", url, content=b"x", headers={"Content-Type": "text/plain", "If-None-Match": "*"}
    )
    if answer.status_code != 412:
        raise HostlerError(f"A presigned PUT of what is there answers {answer.status_code} instead of 412.")


async def _ask(method: str, url: str, **request: Any) -> "httpx.Response":
    import httpx  # noqa: PLC0415  the web's master reads this module, and calls nobody

    try:
        async with httpx.AsyncClient(timeout=5) as client:
            return await client.request(method, url, **request)
    except httpx.HTTPError as error:
        raise HostlerError(str(error) or type(error).__name__) from error


async def queue_checks(store: Store) -> list[Check]:
    """Check how many jobs wait, since when, and that nothing due is left lying."""
    queues = sorted(text(each) for each in await store.call(command("SMEMBERS", "rq:queues")))
    heads = await store.calls(*(command("LINDEX", key, 0, read=text) for key in queues))
    lengths = await store.calls(*(command("LLEN", key) for key in queues))
    created = await store.calls(
        *(command("HGET", f"h:job:{job}", "created", read=text) for job in heads if job)
    )
    ages_s = [(store.now_ms() - int(each)) / 1000 for each in created if each]
    oldest_s, waiting = max(ages_s, default=0.0), sum(lengths)
    found = f"{waiting} jobs wait in queues" + (f", the first since {oldest_s:.0f} s." if waiting else ".")
    if oldest_s < LONG_WAIT_S:
        return [Check("queues", OK, found), await _overdue(store)]
    remedy = "Start more workers; hostler jobs why JOB says what a job waits for."
    return [Check("queues", WARN, found, remedy), await _overdue(store)]


async def _overdue(store: Store) -> Check:
    before = store.now_ms() - int((OVERDUE_S + store.settings.lease_s) * 1000)
    leases, delayed = await store.calls(
        *(command("ZCOUNT", key, "-inf", before) for key in ("h:leases", "h:delayed"))
    )
    if not leases and not delayed:
        return Check("stuck jobs", OK, "No job is left behind.")
    found = f"{leases} running jobs have lost their worker, and {delayed} jobs should have started."
    return Check("stuck jobs", WARN, found, "Start hostler scheduler: it takes care of both.")


async def fleet_checks(store: Store) -> list[Check]:
    """Check that workers are online, and how they keep jobs apart."""
    online = [worker for worker in await fleet.workers(store) if worker.status == "online"]
    if not online:
        return [
            Check("workers", WARN, "No worker is online, so jobs wait.", "Start hostler worker on a host.")
        ]
    slots = sum(worker.slots for worker in online)
    found = [Check("workers", OK, f"Workers online: {len(online)}, with {slots} slots in all.")]
    for worker in online:
        if worker.isolation == "none":
            message = f"Worker {worker.id!r} does not keep its jobs apart from one another, nor from itself."
            remedy = "Run it as root, which gives each slot a user of its own, or on Linux 5.13 or newer."
            found.append(Check("isolation", WARN, message, remedy))
    return found


async def backup_checks(store: Store) -> list[Check]:
    """Check that the nodes which have something to back up can, and that their backups succeed and are proven."""
    found, nodes = [], {worker.id: worker for worker in await fleet.workers(store)}
    every = await backups.every(store)
    for node in sorted({each.node for each in every if each.enabled}):
        worker = nodes.get(node)
        if worker is not None and worker.status == "online" and not worker.metadata.get(backups.ENGINE):
            message = f"Node {node!r} has no restic, so its backups are refused."
            found.append(
                Check("backups", FAIL, message, "Install restic 0.14 or later there, and restart its worker.")
            )
    now_ms = store.now_ms()
    for each in every:
        if sentence := backups.overdue(each, now_ms) or backups.unproven(each, now_ms):
            found.append(Check("backups", WARN, f"{each.name}: {sentence}", f"hostler backup show {each.id}"))
    return found or [
        Check("backups", OK, f"{len(every)} backup jobs, none overdue." if every else "None are set up.")
    ]


async def scheduler_checks(store: Store) -> list[Check]:
    """Check that a scheduler leads."""
    leader = text(await store.call(command("GET", "h:leader")))
    if leader:
        return [Check("scheduler", OK, f"Scheduler {leader.partition(' ')[2]!r} leads.")]
    remedy = "Start hostler scheduler."
    return [
        Check(
            "scheduler",
            WARN,
            "No scheduler is running: nothing delayed, recurring or lost is seen to.",
            remedy,
        )
    ]


async def recovery_checks(store: Store) -> list[Check]:
    """Check how old the newest recovery point of Hostler itself is."""
    from storage import recovery  # noqa: PLC0415  the web process, which reads this module, makes none

    every_s, name = store.settings.recovery_every_s, "recovery point"
    if not every_s:
        found = "Hostler does not back itself up (HOSTLER_RECOVERY_EVERY_S=0)."
        return [Check(name, WARN, found, "Run hostler backup self from time to time.")]
    try:
        points = await recovery.every(recovery.Place.of(store))
    except HostlerError as error:
        return [
            Check(name, WARN, f"Recovery points cannot be listed: {error}", "See to the object store first.")
        ]
    remedy = "Start hostler scheduler, which makes one; hostler backup self says what is in its way."
    if not points:
        return [Check(name, WARN, "There is no recovery point of Hostler itself yet.", remedy)]
    age_s = (store.now_ms() - points[0].made_ms) / 1000
    found = f"The newest recovery point is {age_s / 60:.0f} min old; there are {len(points)} in all."
    late = age_s > recovery.LATE_PERIODS * max(every_s, points[0].took_ms / 1000 / recovery.MOST_SHARE)
    return [Check(name, WARN, found, remedy) if late else Check(name, OK, found)]


def as_json(check: Check) -> dict[str, Any]:
    """Return a check for programs."""
    return {
        "name": check.name,
        "status": check.status,
        "message": check.message,
        "remedy": check.remedy or None,
    }
