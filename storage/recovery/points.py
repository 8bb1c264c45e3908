"""Recovery points in the object store: parts first, then the index that names them, then the record that counts.

A point is listed by its record, and loses that first when it is deleted, so that whatever is listed is whole. Parts
and index are sealed with AES-256-GCM, the record is signed; each under a key derived from HOSTLER_SECRET_KEY.
"""

import asyncio
import hashlib
import logging
import re
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import hiredis
import orjson
import zstandard

from settings import MIB, __version__
from storage.errors import HostlerError, NotFound
from storage.objects import Objects
from storage.records import opened, signed
from storage.recovery import capturing, keyspace
from storage.recovery.pacing import Pace
from storage.seal import Forged, Seal
from storage.store import Store
from storage.wire import Wire

log = logging.getLogger("hostler.storage")

#: Where points lie in the bucket, unless told otherwise.
PREFIX = "recovery"
#: So much is compressed, sealed and stored at once; a single key may exceed it.
PART_BYTES = 8 * MIB
#: Level 3 of zstd: 200 MB/s, and within a tenth of what much slower ones reach on records like ours.
LEVEL = 3
FORMAT = 1
#: So many commands are read back before others get their turn.
_AT_ONCE = 100
_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}")
_LIMIT_BYTES = 1024 * MIB
#: Parts without a record are of an attempt that died, unless they are newer than this.
_FORSAKEN = timedelta(hours=24)
_SEALED, _SIGNED = "recovery point", "recovery record"


class RecoveryError(HostlerError):
    """A recovery point that cannot be used, or a Redis that it may not be loaded into."""

    code = "RECOVERY_REFUSED"


@dataclass(frozen=True, slots=True)
class Place:
    """Where points lie: a bucket, a prefix in it, and the seal under which they were made."""

    objects: Objects
    seal: Seal
    prefix: str = PREFIX

    @classmethod
    def of(cls, store: Store) -> "Place":
        """Return the place where a store's own points lie."""
        return cls(store.objects, store.seal)

    def key(self, point: str, name: str) -> str:
        """Return the key of an object of a point."""
        return f"{self.prefix}/points/{point}/{name}"

    def record(self, point: str) -> str:
        """Return the key of a point's record."""
        return f"{self.prefix}/records/{point}"


@dataclass(frozen=True, slots=True)
class Point:
    """One recovery point as its record says. `made_ms` is when reading began: what came later may be missing."""

    id: str
    made_ms: int
    took_ms: int
    version: str
    fingerprint: str
    parts: int
    size_bytes: int
    plain_bytes: int
    keys: int
    counts: dict[str, int]
    index_sha256: str
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class _Part:
    name: str
    size_bytes: int
    plain_bytes: int
    sha256: str


async def make(store: Store, *, share: float = 1.0) -> Point:
    """Make a recovery point of what Redis holds now, in that share of the time; the rest is left to others.

    Raises Unavailable; an attempt that fails leaves no point.
    """
    place, began = Place.of(store), time.monotonic()
    made_ms = store.now_ms()
    moment = datetime.fromtimestamp(made_ms / 1000, UTC)
    point_id = f"{moment:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"
    wire = Wire(store.settings.redis_url)  # large answers must not make others wait
    writing = _Writing(place, point_id)
    try:
        async for key, made in capturing.commands(wire, made_ms, Pace(share)):
            await writing.add(key, capturing.packed(made))
    finally:
        await wire.close()
    parts = await writing.finish()
    index = orjson.dumps({"format": FORMAT, "id": point_id, "parts": [asdict(part) for part in parts]})
    sealed = place.seal.seal_bytes(_SEALED, index, bound_to=f"{point_id}/index")
    await place.objects.put(place.key(point_id, "index"), sealed)
    point = Point(
        id=point_id, made_ms=made_ms, took_ms=int((time.monotonic() - began) * 1000), version=__version__,
        fingerprint=place.seal.fingerprint, parts=len(parts), size_bytes=sum(part.size_bytes for part in parts),
        plain_bytes=sum(part.plain_bytes for part in parts), keys=writing.keys, counts=dict(writing.counts),
        index_sha256=hashlib.sha256(sealed).hexdigest(),
    )  # fmt: skip
    record = signed(place.seal, _SIGNED, point_id, asdict(point)).encode()
    await place.objects.put(place.record(point_id), record)
    return point


class _Writing:
    """A point under way: the part being filled, and what has been stored."""

    def __init__(self, place: Place, point_id: str) -> None:
        self._place, self._point_id = place, point_id
        self._filling = bytearray()
        self._parts: list[_Part] = []
        self._last = ""
        self.keys = 0
        self.counts: Counter[str] = Counter()

    async def add(self, key: str, data: bytes) -> None:
        if key != self._last:  # the pieces of a large one follow one another
            self._last = key
            self.keys += 1
            if kind := keyspace.kind(key):
                self.counts[kind] += 1
        self._filling += data
        if len(self._filling) >= PART_BYTES:
            await self._ship()

    async def finish(self) -> list[_Part]:
        if self._filling:
            await self._ship()
        return self._parts

    async def _ship(self) -> None:
        name, plain = f"part-{len(self._parts):06d}", bytes(self._filling)
        self._filling.clear()
        sealed = await asyncio.to_thread(self._sealed, name, plain)
        await self._place.objects.put(self._place.key(self._point_id, name), sealed)
        digest = hashlib.sha256(sealed).hexdigest()
        self._parts.append(_Part(name, len(sealed), len(plain), digest))

    def _sealed(self, name: str, plain: bytes) -> bytes:
        packed = zstandard.ZstdCompressor(level=LEVEL).compress(plain)
        return self._place.seal.seal_bytes(_SEALED, packed, bound_to=f"{self._point_id}/{name}")


async def every(place: Place) -> list[Point]:
    """Return all points, the newest first; records of others, or of another key, are left out and told of."""
    found = []
    for key in await place.objects.keys(f"{place.prefix}/records/"):
        name = key.rpartition("/")[2]
        try:
            found.append(await get(place, name))
        except (RecoveryError, NotFound) as error:
            log.error("a recovery point is not believed", extra={"point": name, "why": str(error)})
    # an id tells the second alone: the scheduler's own point may be of the same one as the one somebody asked for
    return sorted(found, key=lambda point: (point.made_ms, point.id), reverse=True)


async def get(place: Place, point_id: str) -> Point:
    """Return one point. Raises NotFound, and RecoveryError for a record that was altered or is of another key."""
    if not _ID.fullmatch(point_id):
        raise NotFound(f"There is no recovery point {point_id!r}: an id is like 20260131T235959Z-0123abcd.")
    try:
        raw = await place.objects.get(place.record(point_id), limit_bytes=MIB)
    except NotFound:
        raise NotFound(f"There is no recovery point {point_id!r} in {place.objects.bucket!r}.") from None
    try:
        return Point(**opened(place.seal, _SIGNED, point_id, raw))
    except (Forged, TypeError, ValueError):
        raise RecoveryError(_not_ours(place, point_id, raw)) from None


def _not_ours(place: Place, point_id: str, raw: bytes) -> str:
    """Return why a record is not believed; what it claims of its key helps to find the right one, no more."""
    try:
        claimed = orjson.loads(raw.partition(b"\n")[2])["fingerprint"]
    except (ValueError, KeyError, TypeError):
        claimed = None
    if (
        isinstance(claimed, str)
        and re.fullmatch(r"[0-9a-f]{16}", claimed)
        and claimed != place.seal.fingerprint
    ):
        return (
            f"Recovery point {point_id} was made under another HOSTLER_SECRET_KEY: its fingerprint is {claimed}, "
            f"that of the one given {place.seal.fingerprint}."
        )
    return f"The record of recovery point {point_id} was altered: its signature does not fit."


async def commands(place: Place, point: Point) -> AsyncIterator[list[list[bytes]]]:
    """Yield the commands of a point, a part at a time, each checked before it is handed out. Raises RecoveryError."""
    for part in await _index(place, point):
        sealed = await _object(place, point, part.name)
        yield await asyncio.to_thread(
            lambda part, sealed: list(_parsed(place, point, part, sealed)), part, sealed
        )


async def verify(place: Place, point: Point, *, share: float = 1.0) -> int:
    """Read all of a point back, in that share of the time, and return how many commands it has.

    Raises RecoveryError unless it is whole.
    """
    count, keys, plain_bytes = 0, 0, 0
    last = b""

    def read(part: _Part, sealed: bytes) -> None:
        nonlocal count, keys, last
        pace = Pace(share)
        for words in _parsed(place, point, part, sealed):
            keys += words[1] != last
            last = words[1]
            count += 1
            if count % _AT_ONCE == 0:
                pace.rest_in_thread()

    for part in await _index(place, point):
        sealed = await _object(place, point, part.name)
        await asyncio.to_thread(read, part, sealed)
        plain_bytes += part.plain_bytes
    if plain_bytes != point.plain_bytes or keys != point.keys:
        raise RecoveryError(f"Recovery point {point.id} has {keys} keys; its record says {point.keys}.")
    return count


async def _index(place: Place, point: Point) -> list[_Part]:
    sealed = await _object(place, point, "index")
    if hashlib.sha256(sealed).hexdigest() != point.index_sha256:
        raise RecoveryError(f"The index of recovery point {point.id} was altered: its digest does not fit.")
    index = _unsealed(place, point, "index", sealed)
    described: dict[str, Any] = orjson.loads(index)
    if described["format"] != FORMAT or len(described["parts"]) != point.parts:
        raise RecoveryError(f"The index of recovery point {point.id} is not of the form that is read here.")
    return [_Part(**each) for each in described["parts"]]


def _parsed(place: Place, point: Point, part: _Part, sealed: bytes) -> Iterator[list[bytes]]:
    """Yield the commands of a part; only once all have been is it known to be whole. Raises RecoveryError."""
    if len(sealed) != part.size_bytes or hashlib.sha256(sealed).hexdigest() != part.sha256:
        raise RecoveryError(f"{part.name} of recovery point {point.id} was altered: its digest does not fit.")
    packed = _unsealed(place, point, part.name, sealed)
    if zstandard.frame_content_size(packed) != part.plain_bytes:
        raise RecoveryError(
            f"{part.name} of recovery point {point.id} cannot be unpacked: it is of another size."
        )
    try:
        plain = zstandard.ZstdDecompressor().decompress(packed, max_output_size=part.plain_bytes)
    except zstandard.ZstdError as error:
        raise RecoveryError(
            f"{part.name} of recovery point {point.id} cannot be unpacked: {error}."
        ) from None
    reader = hiredis.Reader()
    reader.feed(plain)
    while (words := reader.gets()) is not False:
        if (
            not isinstance(words, list)
            or len(words) < 2
            or not all(isinstance(word, bytes) for word in words)
        ):
            raise RecoveryError(
                f"{part.name} of recovery point {point.id} holds something else than commands."
            )
        yield words
    if reader.has_data() or len(plain) != part.plain_bytes:
        raise RecoveryError(f"{part.name} of recovery point {point.id} ends in the middle of a command.")


async def _object(place: Place, point: Point, name: str) -> bytes:
    try:
        return await place.objects.get(place.key(point.id, name), limit_bytes=_LIMIT_BYTES)
    except NotFound:
        raise RecoveryError(f"{name} of recovery point {point.id} is missing from the bucket.") from None


def _unsealed(place: Place, point: Point, name: str, sealed: bytes) -> bytes:
    try:
        return place.seal.open_bytes(_SEALED, sealed, bound_to=f"{point.id}/{name}")
    except Forged:
        raise RecoveryError(
            f"{name} of recovery point {point.id} was altered: it cannot be opened."
        ) from None


async def prune(place: Place, *, last: int, days: int, weeks: int) -> list[str]:
    """Delete the points that no rule keeps, and what attempts that died have left; answers the ids of points deleted.

    Kept are the newest `last`, and the newest one of each of `days` days and `weeks` weeks (UTC); always the newest.
    """
    points = await every(place)
    kept = kept_of(points, last=last, days=days, weeks=weeks)
    gone = [point.id for point in points if point.id not in kept]
    for point_id in gone:
        await place.objects.delete(place.record(point_id))
        await place.objects.delete_prefix(place.key(point_id, ""))
    await _sweep(place)
    return gone


def kept_of(points: list[Point], *, last: int, days: int, weeks: int) -> set[str]:
    """Return the ids of those that are kept of `points`, the newest first."""
    kept = {point.id for point in points[: max(1, last)]}
    for count, period in ((days, "%Y-%m-%d"), (weeks, "%G-%V")):
        newest: dict[str, str] = {}
        for point in points:
            newest.setdefault(f"{datetime.fromtimestamp(point.made_ms / 1000, UTC):{period}}", point.id)
        kept |= set(list(newest.values())[:count])
    return kept


async def _sweep(place: Place) -> None:
    """Delete what lies there without a record: of attempts, and deletions, that were cut short."""
    start = f"{place.prefix}/points/"
    begun = {key.removeprefix(start).partition("/")[0] for key in await place.objects.keys(start)}
    listed = {key.rpartition("/")[2] for key in await place.objects.keys(f"{place.prefix}/records/")}
    for point_id in begun - listed:
        if not _ID.fullmatch(point_id):
            continue
        began = datetime.strptime(point_id[:16], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        if datetime.now(UTC) - began > _FORSAKEN:
            await place.objects.delete_prefix(place.key(point_id, ""))
