"""The object store: uploads, artifacts, logs and backups in S3, streamed in bounded memory."""

import asyncio
import hashlib
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from settings import MIB, Settings
from storage.errors import Conflict, NotFound, TooLarge, Unavailable
from storage.read_into import ReadInto

if (
    TYPE_CHECKING
):  # boto3 takes a quarter of a second to read, and most processes touch the store only now and then
    import boto3
    from botocore.response import StreamingBody
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef

log = logging.getLogger("hostler.storage")
T = TypeVar("T")

#: One part of a multipart upload; S3 wants 5 MiB or more, and 10,000 of them at most.
PART_BYTES = 8 * MIB
#: How much memory there is for the first part, step by step; a small object needs no more than the first of them.
_ROOM_BYTES = (64 * 1024, 512 * 1024, 2 * MIB, PART_BYTES)
#: Parts under way at once, besides the one being filled: what bounds an upload's memory.
PARTS_IN_FLIGHT = 2
#: Parts of all uploads of a process that are under way at once. A store takes no more in a second for being given more
#: at once, and each part has to be taken within the time that a call may last.
PARTS_AT_ONCE = 4
#: What one read of a download fetches.
READ_BYTES = MIB
#: A long download is asked for in spans of this, which end where the parts did that we uploaded. The store works on the
#: next one while one is read: as long as its reader takes so much a second, for no connection shall wait for long.
SPAN_BYTES, FAST_BYTES_A_S = PART_BYTES, 4 * MIB
#: Blocking calls at once.
THREADS = 16
#: How many keys one DeleteObjects takes.
DELETE_BATCH = 1000

#: Making a client reads a megabyte of descriptions, once a session; sessions do not lock for themselves.
_MAKING = threading.Lock()

_MISSING = {"404", "NoSuchKey", "NotFound", "NoSuchUpload"}

#: How patient each kind of client is. `probe` is for readiness, which would rather be told "away" than wait.
_PATIENCE: dict[str, dict[str, Any]] = {
    "work": {
        "connect_timeout": 2,
        "read_timeout": 15,
        "retries": {"mode": "standard", "total_max_attempts": 3},
    },
    # urllib3 takes the time to connect for the time within which a body must have left as a whole too, and many
    # parts share what the store takes in
    "parts": {
        "connect_timeout": 15,
        "read_timeout": 15,
        "retries": {"mode": "standard", "total_max_attempts": 3},
    },
    "public": {"connect_timeout": 2, "read_timeout": 15},
    "probe": {
        "connect_timeout": 2,
        "read_timeout": 2,
        "retries": {"mode": "standard", "total_max_attempts": 1},
    },
}


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What the store says about an object."""

    size_bytes: int
    etag: str
    content_type: str


@dataclass(frozen=True, slots=True)
class Uploaded:
    """What was stored or fetched: its size, its SHA-256 in hex, and the store's own tag."""

    size_bytes: int
    sha256: str
    etag: str


@contextmanager
def _in_our_words(what: str) -> Iterator[None]:
    """Turn whatever boto3 raises into NotFound or Unavailable."""
    from boto3.exceptions import Boto3Error  # noqa: PLC0415  see above
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415
    from urllib3.exceptions import HTTPError  # noqa: PLC0415

    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in _MISSING:
            raise NotFound(f"There is no object {what}.") from None
        if code in {"412", "PreconditionFailed"}:
            raise Conflict(f"The object {what} was replaced meanwhile.") from None
        log.warning("the object store refused", extra={"object": what, "code": code})
        raise Unavailable(f"The object store refuses for now: {code}.", retry_after_s=5) from error
    except (BotoCoreError, Boto3Error, HTTPError, ConnectionError, TimeoutError) as error:
        if isinstance(
            error.__cause__ or error.__context__, ClientError
        ):  # boto3's transfers wrap the refusal
            log.warning("the object store refused", extra={"object": what, "error": str(error)})
        raise Unavailable(
            f"The object store cannot be reached ({type(error).__name__}).", retry_after_s=5
        ) from error


def read_ahead() -> None:
    """Read the code of boto3 now, for a process that is about to fork others which need it."""
    import boto3  # noqa: F401, PLC0415  see above


@cache
def _session() -> "boto3.session.Session":
    import boto3  # noqa: PLC0415  see above

    return boto3.session.Session()


class Objects:
    """One bucket. Nothing touches the network before the first call; the coroutines never block their loop.

    Every call raises Unavailable when the store is away or refuses, and NotFound for a key that is not there.
    """

    def __init__(self, settings: Settings) -> None:
        self.bucket = settings.s3_bucket
        self._settings = settings
        self._clients: dict[str, S3Client] = {}
        self._pool = ThreadPoolExecutor(THREADS, "s3")
        self._background: set[asyncio.Task[None]] = set()
        self._parts = asyncio.Semaphore(PARTS_AT_ONCE)

    # Coroutines, for the web and the scheduler

    async def ensure_bucket(self) -> None:
        """Create the bucket unless it is there. Safe to run twice."""
        await self._run(self.ensure_bucket_now)

    async def put(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> Uploaded:
        """Store `data`, which fits in memory, under `key`."""
        return await self._run(self.put_bytes, key, data, content_type=content_type)

    async def get(self, key: str, *, limit_bytes: int) -> bytes:
        """Return a whole object. Raises TooLarge beyond `limit_bytes`."""
        return await self._run(self.get_bytes, key, limit_bytes=limit_bytes)

    async def head(self, key: str) -> ObjectInfo:
        """Return what the store says about an object."""
        return await self._run(self._head, key)

    async def open(
        self, key: str, *, first: int | None = None, last: int | None = None, etag: str | None = None
    ) -> "Reading":
        """Start to read an object, or its bytes `first` to `last` inclusive; iterate, then close.

        Raises Conflict when the store's own tag of it is not `etag` any more, where that is given.
        """
        wanted: dict[str, str] = {} if etag is None else {"IfMatch": f'"{etag}"'}
        if first is None or last is None:
            if first is not None:
                wanted["Range"] = f"bytes={first}-"
            return Reading(self, key, await self._run(self._open, key, **wanted))
        end = _end_of_span(first, last)
        wanted["Range"] = f"bytes={first}-{end}"
        answer = await self._run(self._get, key, **wanted)
        rest = (end + 1, last, answer["ETag"]) if end < last else None
        return Reading(self, key, answer["Body"], end + 1 - first, rest)

    async def sha256(self, key: str, *, etag: str) -> str:
        """Return the SHA-256 of an object in hex. Raises Conflict when its tag is not `etag` any more."""
        return await self._run(self._sha256, key, etag)

    async def upload(self, key: str, read_into: ReadInto, *, content_type: str, limit_bytes: int) -> Uploaded:
        """Store what `read_into` reads, in parts, holding at most three of them (24 MiB) in memory.

        Raises TooLarge beyond `limit_bytes`, and whatever `read_into` raises; nothing is then left behind.
        """
        sending = _Sending(self, key, content_type)
        try:
            while await sending.fill(read_into):
                if sending.size_bytes > limit_bytes:
                    raise TooLarge(f"The object exceeds {limit_bytes} bytes.")
            return await sending.finish()
        except BaseException:
            cleaning = asyncio.get_running_loop().create_task(sending.abort())
            self._background.add(cleaning)
            cleaning.add_done_callback(self._background.discard)
            await asyncio.shield(cleaning)  # goes on even if we are cancelled once more
            raise

    async def delete(self, *keys: str) -> None:
        """Delete objects. Safe to run twice."""
        await self._run(self._delete, keys)

    async def keys(self, prefix: str) -> list[str]:
        """Return the keys that start with `prefix`, in order."""
        return await self._run(self._keys, prefix)

    async def delete_prefix(self, prefix: str) -> int:
        """Delete every object whose key starts with `prefix`; return how many. Safe to run twice."""
        return await self._run(self._delete_prefix, prefix)

    async def sweep_uploads(self, older_than_s: float) -> int:
        """Abort multipart uploads begun longer ago than that, as a crash leaves them; return how many."""
        return await self._run(self._sweep_uploads, older_than_s)

    async def presign_get(self, key: str, *, filename: str, expires_s: int) -> str:
        """Return a URL that downloads the object as an attachment, for `expires_s` seconds."""
        plain = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in filename)
        disposition = f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"
        params = {
            "ResponseContentDisposition": disposition,
            "ResponseContentType": "application/octet-stream",
        }
        return await self._run(self._presign, "get_object", key, params, expires_s)

    async def presign_put(self, key: str, *, content_type: str, size_bytes: int, expires_s: int) -> str:
        """Return a URL that takes a PUT of exactly that type and length, for `expires_s` seconds."""
        params = {"ContentType": content_type, "ContentLength": size_bytes}
        return await self._run(self._presign, "put_object", key, params, expires_s)

    async def check(self) -> float:
        """Return how long the store takes to say that the bucket is there, in seconds. Gives up after 2 s."""
        return await self._run(self._check)

    # Plain functions, for threads of workers

    def ensure_bucket_now(self) -> None:
        """Create the bucket unless it is there. Safe to run twice."""
        from botocore.exceptions import ClientError  # noqa: PLC0415  see above

        client = self._client()
        with _in_our_words(self.bucket):
            try:
                client.head_bucket(Bucket=self.bucket)
            except ClientError as error:
                if error.response["Error"]["Code"] not in {"404", "NoSuchBucket"}:
                    raise
                where: dict[str, Any] = {}
                region = self._settings.s3_region
                if region != "us-east-1":
                    where = {"CreateBucketConfiguration": {"LocationConstraint": region}}
                with suppress(client.exceptions.BucketAlreadyOwnedByYou):
                    client.create_bucket(Bucket=self.bucket, **where)

    def put_bytes(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> Uploaded:
        """Store `data` under `key`."""
        client = self._client()
        with _in_our_words(key):
            answer = client.put_object(Bucket=self.bucket, Key=key, Body=data, ContentType=content_type)
        return Uploaded(len(data), hashlib.sha256(data).hexdigest(), answer["ETag"].strip('"'))

    def put_file(self, key: str, path: Path, *, content_type: str = "application/octet-stream") -> Uploaded:
        """Store the file at `path`, which nobody changes meanwhile. Raises OSError when it cannot be read."""
        from boto3.s3.transfer import TransferConfig  # noqa: PLC0415  see above

        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        transfer = TransferConfig(
            multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=PARTS_IN_FLIGHT
        )
        client = self._client("parts")
        with _in_our_words(key):
            client.upload_file(
                str(path), self.bucket, key, ExtraArgs={"ContentType": content_type}, Config=transfer
            )
        stored = self._head(key)
        return Uploaded(stored.size_bytes, sha256, stored.etag)

    def get_bytes(self, key: str, *, limit_bytes: int) -> bytes:
        """Return a whole object. Raises TooLarge beyond `limit_bytes`."""
        with _in_our_words(key):
            body = self._open(key)
            try:
                data = body.read(limit_bytes + 1)
            finally:
                body.close()
        if len(data) > limit_bytes:
            raise TooLarge(f"The object {key} exceeds {limit_bytes} bytes.")
        return data

    def get_file(
        self, key: str, path: Path, *, limit_bytes: int, cancelled: Callable[[], bool] = lambda: False
    ) -> Uploaded:
        """Fetch an object into a new file at `path`.

        Raises TooLarge beyond `limit_bytes`, InterruptedError once `cancelled()` is true, and OSError when
        the file cannot be written; the file is then gone.
        """
        body = self._open(key)
        sha256, size_bytes = hashlib.sha256(), 0
        try:
            with path.open("xb") as file:
                try:
                    while chunk := self._read(body, key):
                        if cancelled():
                            raise InterruptedError(f"Fetching {key} was cancelled.")
                        size_bytes += len(chunk)
                        if size_bytes > limit_bytes:
                            raise TooLarge(f"The object {key} exceeds {limit_bytes} bytes.")
                        sha256.update(chunk)
                        file.write(chunk)
                except BaseException:
                    path.unlink(missing_ok=True)
                    raise
        finally:
            body.close()
        return Uploaded(size_bytes, sha256.hexdigest(), "")

    def close(self) -> None:
        """Let go of connections and threads; calls under way end by themselves."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        with _MAKING:
            for client in self._clients.values():
                client.close()
            self._clients.clear()

    # Inside

    async def _run(self, function: Callable[..., T], *arguments: Any, **named: Any) -> T:
        loop = asyncio.get_running_loop()
        try:
            result = loop.run_in_executor(self._pool, partial(function, *arguments, **named))
        except RuntimeError:
            raise Unavailable("This process is stopping.") from None
        return await result

    def _client(self, kind: str = "work") -> "S3Client":
        with _MAKING:
            if kind not in self._clients:
                with _in_our_words(self.bucket):
                    self._clients[kind] = self._connected(kind)
            return self._clients[kind]

    def _connected(self, kind: str) -> "S3Client":
        from botocore.config import Config  # noqa: PLC0415  see above

        settings = self._settings
        endpoint = settings.s3_endpoint_url
        if kind == "public":
            endpoint = settings.s3_public_endpoint_url or endpoint
        config = Config(
            signature_version="s3v4",
            max_pool_connections=2 * THREADS,
            tcp_keepalive=True,
            # stores other than AWS's own do not all know the newer checksums
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={
                "addressing_style": "path" if endpoint else "auto",
                # TLS already guards the body; hashing it once more costs a pass over every part
                "payload_signing_enabled": bool(endpoint and endpoint.startswith("http://")),
            },
            **_PATIENCE[kind],
        )
        return _session().client(
            "s3",
            endpoint_url=endpoint,
            region_name=settings.s3_region,
            aws_access_key_id=settings.s3_access_key_id,
            aws_secret_access_key=settings.s3_secret_access_key,
            config=config,
        )

    def _head(self, key: str) -> ObjectInfo:
        client = self._client()
        with _in_our_words(key):
            answer = client.head_object(Bucket=self.bucket, Key=key)
        return ObjectInfo(
            answer["ContentLength"],
            answer["ETag"].strip('"'),
            answer.get("ContentType", "application/octet-stream"),
        )

    def _get(self, key: str, **wanted: Any) -> "GetObjectOutputTypeDef":
        client = self._client()
        with _in_our_words(key):
            return client.get_object(Bucket=self.bucket, Key=key, **wanted)

    def _open(self, key: str, **wanted: Any) -> "StreamingBody":
        return self._get(key, **wanted)["Body"]

    @staticmethod
    def _read(body: "StreamingBody", key: str) -> bytes:
        with _in_our_words(key):
            return body.read(READ_BYTES)

    def _sha256(self, key: str, etag: str) -> str:
        digest, body = hashlib.sha256(), self._open(key, IfMatch=f'"{etag}"')
        try:
            while chunk := self._read(body, key):
                digest.update(chunk)
        finally:
            body.close()
        return digest.hexdigest()

    def _delete(self, keys: tuple[str, ...]) -> None:
        client = self._client()
        for start in range(0, len(keys), DELETE_BATCH):
            batch = keys[start : start + DELETE_BATCH]
            with _in_our_words(batch[0]):
                if len(batch) == 1:
                    client.delete_object(Bucket=self.bucket, Key=batch[0])
                    continue
                answer = client.delete_objects(
                    Bucket=self.bucket, Delete={"Objects": [{"Key": key} for key in batch], "Quiet": True}
                )
            refused = [error for error in answer.get("Errors", []) if error.get("Code") not in _MISSING]
            if refused:
                raise Unavailable(f"The object store did not delete {len(refused)} of {len(batch)} objects.")

    def _keys(self, prefix: str) -> list[str]:
        client = self._client()
        with _in_our_words(prefix):
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
            return sorted(found["Key"] for page in pages for found in page.get("Contents", []))

    def _delete_prefix(self, prefix: str) -> int:
        if not prefix:
            raise ValueError("An empty prefix would delete the whole bucket.")
        client, deleted = self._client(), 0
        while True:
            with _in_our_words(prefix):
                page = client.list_objects_v2(Bucket=self.bucket, Prefix=prefix, MaxKeys=DELETE_BATCH)
            keys = tuple(found["Key"] for found in page.get("Contents", []))
            if not keys:
                return deleted
            self._delete(keys)
            deleted += len(keys)

    def _sweep_uploads(self, older_than_s: float) -> int:
        client, swept = self._client(), 0
        before = datetime.now(UTC) - timedelta(seconds=older_than_s)
        with _in_our_words(self.bucket):
            pages = list(client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket))
        for upload in (upload for page in pages for upload in page.get("Uploads", [])):
            if upload["Initiated"] <= before:
                with suppress(NotFound), _in_our_words(upload["Key"]):
                    client.abort_multipart_upload(
                        Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                    )
                    swept += 1
        return swept

    def _presign(self, operation: str, key: str, params: dict[str, Any], expires_s: int) -> str:
        client = self._client("public")
        with _in_our_words(key):
            return client.generate_presigned_url(
                operation, Params={"Bucket": self.bucket, "Key": key, **params}, ExpiresIn=expires_s
            )

    def _check(self) -> float:
        client, began = self._client("probe"), time.perf_counter()
        with _in_our_words(self.bucket):
            client.head_bucket(Bucket=self.bucket)
        return time.perf_counter() - began


def _end_of_span(first: int, last: int) -> int:
    """Return where the span ends that begins at `first`; what is no longer than one is not divided."""
    return last if last - first < SPAN_BYTES else first - first % SPAN_BYTES + SPAN_BYTES - 1


class Reading:
    """An object being read: iterate, then `close`; the next chunk is fetched while one is used.

    `left` are the bytes that `body` has, where that is known; `rest` is what follows them: its first byte, its last one
    and the object's tag.
    """

    def __init__(
        self,
        objects: Objects,
        key: str,
        body: "StreamingBody",
        left: int | None = None,
        rest: tuple[int, int, str] | None = None,
    ) -> None:
        self._objects = objects
        self._key = key
        self._body = body
        self._left, self._rest = left, rest
        self._next: asyncio.Future[bytes] | None = None
        self._ahead: asyncio.Future[StreamingBody] | None = None
        self._taken, self._since_s = 0, 0.0  # of this span, and since when

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._next is None:
            self._next = asyncio.ensure_future(self._fetch())
        chunk = await self._next
        if not chunk:
            await self.close()
            raise StopAsyncIteration
        self._look_ahead(len(chunk))
        self._next = asyncio.ensure_future(self._fetch())
        return chunk

    def _look_ahead(self, taken: int) -> None:
        """Have the next span opened for a reader that will soon want it."""
        if self._rest is None or self._ahead is not None:
            return
        now = asyncio.get_running_loop().time()
        if not self._taken:
            self._since_s = now
        elif self._taken >= (now - self._since_s) * FAST_BYTES_A_S:
            self._ahead = asyncio.ensure_future(self._open(*self._rest))
        self._taken += taken

    async def _open(self, first: int, last: int, etag: str) -> "StreamingBody":
        wanted = {"IfMatch": etag, "Range": f"bytes={first}-{_end_of_span(first, last)}"}
        return await self._objects._run(self._objects._open, self._key, **wanted)

    async def _fetch(self) -> bytes:
        if self._left == 0:
            if self._rest is None:
                return b""
            return await self._go_on(*self._rest)
        return await self._read()

    async def _go_on(self, first: int, last: int, etag: str) -> bytes:
        """Return the first chunk of the next span."""
        ahead, self._ahead = self._ahead, None
        end = _end_of_span(first, last)
        self._left, self._rest = end + 1 - first, (end + 1, last, etag) if end < last else None
        self._taken = 0
        if ahead is not None:
            try:
                self._body = await ahead
                return await self._read()
            except Unavailable:  # it may have waited for longer than the store has patience
                self._body.close()
        self._body = await self._open(first, last, etag)
        return await self._read()

    async def _read(self) -> bytes:
        chunk = await self._objects._run(Objects._read, self._body, self._key)
        if self._left is not None:
            self._left -= len(chunk)
        return chunk

    async def close(self) -> None:
        """Give the connections up. Safe to run twice."""
        pending, self._next = self._next, None
        if pending is not None and not pending.done():
            await asyncio.wait([pending])
        if pending is not None and not pending.cancelled():
            pending.exception()  # nobody else will ask
        self._body.close()
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            await asyncio.wait([ahead])
            if not ahead.cancelled() and ahead.exception() is None:
                ahead.result().close()


class _Digest:
    """A SHA-256 that a thread reckons beside whoever has the bytes, in their order."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool, self._sha256 = pool, hashlib.sha256()
        self._lock = threading.Lock()
        self._waiting: deque[memoryview | Callable[[], object]] = deque()
        self._running = False

    def update(self, piece: memoryview) -> None:
        """Take `piece`, which must not change before it was reckoned. May be called in any thread.

        Raises Unavailable when the process stops.
        """
        self._put(piece)

    def caught_up(self) -> "asyncio.Future[None]":
        """Return what is done once all that was taken so far is reckoned. Raises Unavailable when the process stops."""
        loop = asyncio.get_running_loop()
        reckoned: asyncio.Future[None] = loop.create_future()
        self._put(partial(loop.call_soon_threadsafe, _settle, reckoned))
        return reckoned

    def hexdigest(self) -> str:
        """Return the digest of what was reckoned."""
        return self._sha256.hexdigest()

    def _put(self, what: "memoryview | Callable[[], object]") -> None:
        with self._lock:
            self._waiting.append(what)
            if self._running:
                return
            try:
                self._pool.submit(self._run)
            except RuntimeError:
                raise Unavailable("This process is stopping.") from None
            self._running = True

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._running = False
                    return
                what = self._waiting.popleft()
            if isinstance(what, memoryview):
                with what:
                    self._sha256.update(what)
            else:
                what()


def _settle(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


class _Sending:
    """An upload under way: the part being filled, those in flight, and what S3 has confirmed."""

    def __init__(self, objects: Objects, key: str, content_type: str) -> None:
        self._objects = objects
        self._target = {"Bucket": objects.bucket, "Key": key}
        self._content_type = content_type
        self._digest = _Digest(objects._pool)
        self._hashed: asyncio.Future[None] | None = None  # the part before the one being filled
        self._filling = bytearray()
        self._filled = self._digested = 0
        self._free: list[bytearray] = []
        self._upload_id: str | None = None
        self._count = 0
        self._given_up = False
        self._in_flight: set[asyncio.Task[None]] = set()
        self._etags: dict[int, str] = {}
        self.size_bytes = 0

    async def fill(self, read_into: ReadInto) -> int:
        """Take the next bytes and return how many, 0 at their end; waits while too many parts are under way."""
        if self._filled == PART_BYTES:
            await self._ship()
        if self._filled == len(self._filling):
            size = next(each for each in _ROOM_BYTES if each > self._filled)
            larger = bytearray(PART_BYTES if self._count else size)
            larger[: self._filled] = self._filling  # not in place: the digest may still look at it
            self._filling = larger
        size = await read_into(self._filling, self._filled, len(self._filling), self._digest_to)
        self._filled += size
        self.size_bytes += size
        return size

    def _digest_to(self, end: int) -> bool:
        self._digest.update(memoryview(self._filling)[self._digested : end])
        self._digested = end
        return True

    async def finish(self) -> Uploaded:
        """Send what is left and have S3 put the parts together."""
        if self._upload_id is None:
            return await self._put_whole()
        await self._digest.caught_up()
        del self._filling[self._filled :]
        await self._ship()
        while self._in_flight:
            await self._landed()
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in sorted(self._etags.items())]
        answer = await self._ask(
            "complete_multipart_upload", UploadId=self._upload_id, MultipartUpload={"Parts": parts}
        )
        return Uploaded(self.size_bytes, self._digest.hexdigest(), answer["ETag"].strip('"'))

    async def abort(self) -> None:
        """Leave nothing behind; parts in flight are awaited, for one that lands later would stay."""
        self._given_up = True
        await asyncio.gather(*self._in_flight, return_exceptions=True)
        if self._upload_id is not None:
            with suppress(NotFound, Unavailable):  # the sweeper comes later
                await self._ask("abort_multipart_upload", UploadId=self._upload_id)

    async def _put_whole(self) -> Uploaded:
        await self._digest.caught_up()
        del self._filling[self._filled :]
        answer = await self._ask("put_object", Body=self._filling, ContentType=self._content_type)
        return Uploaded(self.size_bytes, self._digest.hexdigest(), answer["ETag"].strip('"'))

    async def _ship(self) -> None:
        if self._upload_id is None:
            answer = await self._ask("create_multipart_upload", ContentType=self._content_type)
            self._upload_id = answer["UploadId"]
        while len(self._in_flight) >= PARTS_IN_FLIGHT:
            await self._landed()
        if self._hashed is not None:
            await self._hashed  # what is received before it can be hashed only takes its time from hashing
        part, self._filling = self._filling, self._free.pop() if self._free else bytearray()
        self._filled = self._digested = 0
        self._count += 1
        self._hashed = self._digest.caught_up()
        self._in_flight.add(asyncio.ensure_future(self._send(self._count, part, self._hashed)))

    async def _send(self, number: int, part: bytearray, hashed: "asyncio.Future[None]") -> None:
        async with self._objects._parts:
            if self._given_up:
                return
            answer = await self._ask("upload_part", UploadId=self._upload_id, PartNumber=number, Body=part)
        self._etags[number] = answer["ETag"]
        await hashed
        self._free.append(part)

    async def _landed(self) -> None:
        done, self._in_flight = await asyncio.wait(self._in_flight, return_when=asyncio.FIRST_COMPLETED)
        failures = [task.exception() for task in done]  # of several, all are asked for and the first is told
        for failure in failures:
            if failure is not None:
                raise failure

    async def _ask(self, operation: str, **arguments: Any) -> Any:
        def ask() -> Any:
            client = self._objects._client("parts" if operation == "upload_part" else "work")
            with _in_our_words(self._target["Key"]):
                return getattr(client, operation)(**self._target, **arguments)

        return await self._objects._run(ask)
