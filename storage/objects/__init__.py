"""The object store: uploads, artifacts, logs and backups in S3, streamed in bounded memory."""

import asyncio
import hashlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from settings import MIB, Settings
from storage.errors import NotFound, TooLarge, Unavailable
from storage.objects.clients import MISSING, THREADS, Clients, in_our_words, read_ahead
from storage.objects.reading import Reading, end_of_span
from storage.objects.sending import PART_BYTES, PARTS_IN_FLIGHT, Sending, Uploaded
from storage.read_into import ReadInto

if TYPE_CHECKING:  # boto3 is read where it is needed, as storage.objects.clients says
    from botocore.response import StreamingBody
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef

T = TypeVar("T")

#: Parts of all uploads of a process that are under way at once. A store takes no more in a second for being given more
#: at once, and each part has to be taken within the time that a call may last.
PARTS_AT_ONCE = 4
#: What one read of a download fetches.
READ_BYTES = MIB
#: How many keys one DeleteObjects takes.
DELETE_BATCH = 1000


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What the store says about an object."""

    size_bytes: int
    etag: str
    content_type: str


class Objects:
    """One bucket. Nothing touches the network before the first call; the coroutines never block their loop.

    Every call raises Unavailable when the store is away or refuses, and NotFound for a key that is not there.
    """

    def __init__(self, settings: Settings) -> None:
        self.bucket = settings.s3_bucket
        self._settings = settings
        self._clients = Clients(settings)
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
            return self._reading(key, await self._run(self._open, key, **wanted))
        end = end_of_span(first, last)
        wanted["Range"] = f"bytes={first}-{end}"
        answer = await self._run(self._get, key, **wanted)
        rest = (end + 1, last, answer["ETag"]) if end < last else None
        return self._reading(key, answer["Body"], end + 1 - first, rest)

    async def sha256(self, key: str, *, etag: str) -> str:
        """Return the SHA-256 of an object in hex. Raises Conflict when its tag is not `etag` any more."""
        return await self._run(self._sha256, key, etag)

    async def upload(self, key: str, read_into: ReadInto, *, content_type: str, limit_bytes: int) -> Uploaded:
        """Store what `read_into` reads, in parts, holding at most three of them (24 MiB) in memory.

        Raises TooLarge beyond `limit_bytes`, and whatever `read_into` raises; nothing is then left behind.
        """
        sending = Sending(partial(self._ask, key), self._pool, self._parts, content_type)
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
        """Return a URL that takes a PUT of exactly that type and length, for `expires_s` seconds.

        It must say `If-None-Match: *`, and is refused (412) where the object is there: what was put stays as it is.
        """
        params = {"ContentType": content_type, "ContentLength": size_bytes, "IfNoneMatch": "*"}
        return await self._run(self._presign, "put_object", key, params, expires_s)

    async def check(self) -> float:
        """Return how long the store takes to say that the bucket is there, in seconds. Gives up after 2 s."""
        return await self._run(self._check)

    # Plain functions, for threads of workers

    def ensure_bucket_now(self) -> None:
        """Create the bucket unless it is there. Safe to run twice."""
        from botocore.exceptions import ClientError  # noqa: PLC0415  see above

        client = self._client()
        with in_our_words(self.bucket):
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
        with in_our_words(key):
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
        with in_our_words(key):
            client.upload_file(
                str(path), self.bucket, key, ExtraArgs={"ContentType": content_type}, Config=transfer
            )
        stored = self._head(key)
        return Uploaded(stored.size_bytes, sha256, stored.etag)

    def get_bytes(self, key: str, *, limit_bytes: int) -> bytes:
        """Return a whole object. Raises TooLarge beyond `limit_bytes`."""
        with in_our_words(key):
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
                    while chunk := self._read(key, body):
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
        self._clients.close()

    # Inside

    async def _run(self, function: Callable[..., T], *arguments: Any, **named: Any) -> T:
        loop = asyncio.get_running_loop()
        try:
            result = loop.run_in_executor(self._pool, partial(function, *arguments, **named))
        except RuntimeError:
            raise Unavailable("This process is stopping.") from None
        return await result

    def _client(self, kind: str = "work") -> "S3Client":
        return self._clients.of(kind)

    async def _ask(self, key: str, operation: str, /, **arguments: Any) -> Any:
        """Call an operation of S3 on one object."""

        def ask() -> Any:
            client = self._client("parts" if operation == "upload_part" else "work")
            with in_our_words(key):
                return getattr(client, operation)(Bucket=self.bucket, Key=key, **arguments)

        return await self._run(ask)

    def _reading(
        self,
        key: str,
        body: "StreamingBody",
        left: int | None = None,
        rest: tuple[int, int, str] | None = None,
    ) -> Reading:
        return Reading(
            body, partial(self._run, self._read, key), partial(self._run, self._open_span, key), left, rest
        )

    def _head(self, key: str) -> ObjectInfo:
        client = self._client()
        with in_our_words(key):
            answer = client.head_object(Bucket=self.bucket, Key=key)
        return ObjectInfo(
            answer["ContentLength"],
            answer["ETag"].strip('"'),
            answer.get("ContentType", "application/octet-stream"),
        )

    def _get(self, key: str, **wanted: Any) -> "GetObjectOutputTypeDef":
        client = self._client()
        with in_our_words(key):
            return client.get_object(Bucket=self.bucket, Key=key, **wanted)

    def _open(self, key: str, **wanted: Any) -> "StreamingBody":
        return self._get(key, **wanted)["Body"]

    def _open_span(self, key: str, first: int, last: int, etag: str) -> "StreamingBody":
        return self._open(key, IfMatch=etag, Range=f"bytes={first}-{end_of_span(first, last)}")

    @staticmethod
    def _read(key: str, body: "StreamingBody") -> bytes:
        with in_our_words(key):
            return body.read(READ_BYTES)

    def _sha256(self, key: str, etag: str) -> str:
        digest, body = hashlib.sha256(), self._open(key, IfMatch=f'"{etag}"')
        try:
            while chunk := self._read(key, body):
                digest.update(chunk)
        finally:
            body.close()
        return digest.hexdigest()

    def _delete(self, keys: tuple[str, ...]) -> None:
        client = self._client()
        for start in range(0, len(keys), DELETE_BATCH):
            batch = keys[start : start + DELETE_BATCH]
            with in_our_words(batch[0]):
                if len(batch) == 1:
                    client.delete_object(Bucket=self.bucket, Key=batch[0])
                    continue
                answer = client.delete_objects(
                    Bucket=self.bucket, Delete={"Objects": [{"Key": key} for key in batch], "Quiet": True}
                )
            refused = [error for error in answer.get("Errors", []) if error.get("Code") not in MISSING]
            if refused:
                raise Unavailable(f"The object store did not delete {len(refused)} of {len(batch)} objects.")

    def _keys(self, prefix: str) -> list[str]:
        client = self._client()
        with in_our_words(prefix):
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
            return sorted(found["Key"] for page in pages for found in page.get("Contents", []))

    def _delete_prefix(self, prefix: str) -> int:
        if not prefix:
            raise ValueError("An empty prefix would delete the whole bucket.")
        client, deleted = self._client(), 0
        while True:
            with in_our_words(prefix):
                page = client.list_objects_v2(Bucket=self.bucket, Prefix=prefix, MaxKeys=DELETE_BATCH)
            keys = tuple(found["Key"] for found in page.get("Contents", []))
            if not keys:
                return deleted
            self._delete(keys)
            deleted += len(keys)

    def _sweep_uploads(self, older_than_s: float) -> int:
        client, swept = self._client(), 0
        before = datetime.now(UTC) - timedelta(seconds=older_than_s)
        with in_our_words(self.bucket):
            pages = list(client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket))
        for upload in (upload for page in pages for upload in page.get("Uploads", [])):
            if upload["Initiated"] <= before:
                with suppress(NotFound), in_our_words(upload["Key"]):
                    client.abort_multipart_upload(
                        Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                    )
                    swept += 1
        return swept

    def _presign(self, operation: str, key: str, params: dict[str, Any], expires_s: int) -> str:
        client = self._client("public")
        with in_our_words(key):
            return client.generate_presigned_url(
                operation, Params={"Bucket": self.bucket, "Key": key, **params}, ExpiresIn=expires_s
            )

    def _check(self) -> float:
        client, began = self._client("probe"), time.perf_counter()
        with in_our_words(self.bucket):
            client.head_bucket(Bucket=self.bucket)
        return time.perf_counter() - began


__all__ = ["PARTS_AT_ONCE", "PART_BYTES", "ObjectInfo", "Objects", "Reading", "Uploaded", "read_ahead"]
