"""Files: what clients upload, from the announcement until their age or somebody deletes them."""

import asyncio
import mimetypes
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote, unquote, urlsplit

from settings import MIB
from storage.calls import Call, command, pairs, script, text
from storage.errors import Conflict, HostlerError, Invalid, NotFound, TooLarge, Unprocessable
from storage.objects import Reading, Uploaded
from storage.read_into import ReadInto
from storage.store import Store

DAY_MS = 24 * 3600 * 1000
#: An announced upload whose bytes are not all there by then is swept.
PENDING_MS = DAY_MS
#: How long a presigned URL takes a file, or hands one out.
PRESIGNED_UPLOAD_S = 3600
PRESIGNED_DOWNLOAD_S = 300
#: A file whose time has come while a job still needs it gets so much longer, again and again.
POSTPONED_MS = DAY_MS
FILENAME_LIMIT_BYTES = 255
CONTENT_TYPE_LIMIT = 127

_ID = re.compile(r"file-[0-9a-z]{1,40}")
_PATH = re.compile(
    r"/uploads/(?P<upload>[^/]+)(?:/(?P<name>[^/?#]+))?|/api/files/download/(?P<download>[^/]+)"
)
_ENCODED = re.compile(r"%[0-9A-Fa-f]{2}")
_CONTENT_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_TYPES = mimetypes.MimeTypes()  # the same on every machine: no file of the system's is read
_ANYTHING = "application/octet-stream"


class InvalidFile(Invalid):
    """What was uploaded cannot be accepted as a file."""

    code = "INVALID_FILE"


@dataclass(frozen=True, slots=True)
class File:
    """One upload. Times are in ms since the epoch; `etag` is the object store's own tag."""

    id: str
    state: Literal["pending", "ready", "deleting"]
    filename: str
    size_bytes: int
    sha256: str
    content_type: str
    uploaded_ms: int
    expires_ms: int
    uploaded_by: str
    etag: str

    @property
    def url(self) -> str:
        """Return the path under which the API serves it."""
        return f"/uploads/{self.id}/{quote(self.filename, safe='')}"

    @property
    def key(self) -> str:
        """Return its key in the object store; what users call it never is part of that."""
        return object_key(self.id)


def object_key(file_id: str) -> str:
    """Return the key under which a file's bytes lie."""
    return f"uploads/{file_id}"


def clean_filename(filename: str | None) -> str:
    """Return the last part of `filename` without control characters, cut to 255 bytes. Raises InvalidFile."""
    name = unicodedata.normalize("NFC", filename or "").replace("\\", "/").rpartition("/")[2]
    # control, format (such as bidirectional overrides), surrogate, unassigned, line and paragraph separator
    name = "".join(
        c for c in name if unicodedata.category(c) not in {"Cc", "Cf", "Cs", "Cn", "Zl", "Zp"}
    ).strip()
    name = _ENCODED.sub(
        lambda found: "_" + found[0][1:], name
    )  # resolve() takes no name that is encoded twice
    stem, dot, suffix = name.rpartition(".")
    if len(name.encode()) > FILENAME_LIMIT_BYTES:  # keep the suffix: it says what the file is
        suffix = dot + suffix if len(suffix.encode()) <= 16 else ""
        room = FILENAME_LIMIT_BYTES - len(suffix.encode())
        name = (stem or name).encode()[:room].decode(errors="ignore") + suffix
    if not name.strip(". "):
        raise InvalidFile("The file needs a name.", details={"filename": "missing"})
    return name


def clean_content_type(declared: str | None, filename: str) -> str:
    """Return the declared type without parameters, or what the name suggests when nothing is declared."""
    media_type = (declared or "").partition(";")[0].strip().lower()
    if (
        len(media_type) > CONTENT_TYPE_LIMIT
        or not _CONTENT_TYPE.fullmatch(media_type)
        or media_type.startswith(
            "multipart/"
        )  # says nothing without its boundary, and S3's client complains of it
        or media_type == _ANYTHING
    ):
        guessed, encoding = _TYPES.guess_type(filename)
        return f"application/{encoding}" if encoding else guessed or _ANYTHING
    return media_type


def resolve(file_url: str, *, own: Sequence[str] = ()) -> str | None:
    """Return the id of the upload that `file_url` names, or None when it is an absolute URL elsewhere.

    `own` lists the addresses under which clients know us, such as `https://hostler.example`. Raises Invalid
    when it is neither: another scheme, another path, a query, credentials, an encoded slash.
    """
    problem = Invalid(
        "fileUrl must be the url of an upload or an https URL.", details={"fileUrl": "not a file's URL"}
    )
    if not file_url.isprintable() or "\\" in file_url or len(file_url) > 2048:
        raise problem
    path = file_url
    if not file_url.startswith("/") or file_url.startswith("//"):
        try:
            parts = urlsplit(file_url)
            port = parts.port
        except ValueError:
            raise problem from None
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise problem
        if (parts.scheme, parts.hostname, port) not in {_origin(base) for base in own}:
            return None
        path = file_url.partition("://")[2]
        path = path[path.find("/") :] if "/" in path else ""
        if parts.username is not None or parts.password is not None:
            raise problem
    match = _PATH.fullmatch(path)
    if match is None:
        raise problem
    file_id = match["upload"] or match["download"]
    if not _ID.fullmatch(file_id) or not _is_clean(match["name"]):
        raise problem
    return file_id


def _origin(base: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(base)
    return parts.scheme, parts.hostname, parts.port


def _is_clean(quoted_name: str | None) -> bool:
    """Tell whether a URL's last part is one that we give out; twice encoded, it is not."""
    if quoted_name is None:
        return True
    try:
        name = unquote(quoted_name, errors="strict")
        return clean_filename(name) == name
    except (UnicodeError, InvalidFile):
        return False


async def get(store: Store, file_id: str) -> File:
    """Return a file that is there. Raises NotFound, also for one that is still being uploaded."""
    file = await _load(store, file_id)
    if file is None or file.state != "ready":
        raise _missing()
    return file


async def page(store: Store, *, limit: int, offset: int, descending: bool = True) -> tuple[int, list[File]]:
    """Return how many files there are, and `limit` of them from `offset` on, by the time of their upload."""

    def read(reply: list[Any]) -> tuple[int, list[File]]:
        total, *rest = reply
        return total, [_file(text(rest[i]), pairs(rest[i + 1])) for i in range(0, len(rest), 2)]

    first, last = offset, offset + limit - 1
    return await store.call(script("file_page", first, last, "1" if descending else "", read=read))


async def accept(
    store: Store,
    read_into: ReadInto,
    *,
    filename: str,
    content_type: str | None,
    actor: str,
) -> File:
    """Store what `read_into` reads as a new file.

    Raises InvalidFile beyond the limit or without a name, and whatever `read_into` raises; nothing is left then.
    """
    name = clean_filename(filename)
    media_type = clean_content_type(content_type, name)
    file_id = await _announce(store, filename=name, type=media_type, by=actor)
    try:
        try:
            uploaded = await store.objects.upload(
                object_key(file_id),
                read_into,
                content_type=media_type,
                limit_bytes=store.settings.upload_limit_bytes,
            )
        except TooLarge:
            raise too_large(store) from None
        return await _ready(store, file_id, uploaded)
    except BaseException:
        cleaning = asyncio.ensure_future(_discard(store, file_id))
        await asyncio.shield(cleaning)
        raise


async def presign(
    store: Store, *, filename: str, size_bytes: int, content_type: str | None, sha256: str | None, actor: str
) -> tuple[File, str]:
    """Announce a file and return it with a URL that takes its bytes by one PUT. Raises InvalidFile."""
    if size_bytes > store.settings.upload_limit_bytes:
        raise too_large(store)
    if sha256 is not None and not _SHA256.fullmatch(sha256):
        raise Invalid("sha256 must be 64 lower-case hexadecimal digits.", details={"sha256": "malformed"})
    name = clean_filename(filename)
    media_type = clean_content_type(content_type, name)
    file_id = await _announce(
        store, filename=name, type=media_type, by=actor, size=size_bytes, sha256=sha256 or "",
        puttable_until=store.now_ms() + PENDING_MS,
    )  # fmt: skip
    url = await store.objects.presign_put(
        object_key(file_id), content_type=media_type, size_bytes=size_bytes, expires_s=PRESIGNED_UPLOAD_S
    )
    file = await _load(store, file_id)
    if file is None:
        raise _missing()
    return file, url


async def complete(store: Store, file_id: str) -> File:
    """Take in a file that its owner has put directly, after reading it through. Safe to run twice.

    Raises NotFound, Conflict while the object is not there, and Unprocessable when it is not what was
    announced: it is then deleted and may be put again.
    """
    file = await _load(store, file_id)
    if file is None or file.state == "deleting":
        raise _missing()
    if file.state == "ready":
        return file
    try:
        stored = await store.objects.head(file.key)
    except NotFound:
        raise Conflict("The file's bytes have not arrived yet.") from None
    if stored.size_bytes != file.size_bytes:
        await store.objects.delete(file.key)
        raise Unprocessable(f"{stored.size_bytes} bytes arrived where {file.size_bytes} were announced.")
    sha256 = await store.objects.sha256(file.key, etag=stored.etag)
    if file.sha256 and sha256 != file.sha256:
        await store.objects.delete(file.key)
        raise Unprocessable("The bytes that arrived do not have the announced sha256.")
    return await _ready(store, file_id, Uploaded(stored.size_bytes, sha256, stored.etag))


async def open_content(store: Store, file: File, *, first: int, last: int) -> Reading:
    """Start to read the bytes `first` to `last` inclusive. Raises NotFound, or Conflict once replaced."""
    return await store.objects.open(file.key, first=first, last=last, etag=file.etag)


async def presigned_url(store: Store, file: File) -> str:
    """Return a URL of the object store that hands the file out for five minutes."""
    return await store.objects.presign_get(file.key, filename=file.filename, expires_s=PRESIGNED_DOWNLOAD_S)


async def delete(store: Store, file_id: str, *, actor: str) -> None:
    """Delete a file: it vanishes at once, its bytes follow. Raises NotFound, or Conflict while needed."""
    if not _ID.fullmatch(file_id):
        raise _missing()
    outcome = await store.call(_remove(store, file_id, actor=actor))
    if outcome == "needed":
        raise Conflict(f"The file {file_id} is still needed by a job that has not ended, or by a release.")
    if outcome == "gone":
        raise _missing()
    await _erase(store, file_id, store.now_ms())


async def expire_due(store: Store, now_ms: int, limit: int = 100) -> int:
    """Delete up to `limit` files whose time has come, unfinished uploads and half-deleted files among them.

    Return how many were deleted. Safe to run twice. Raises Unavailable when the object store is away; the
    next run goes on from there.
    """
    due = await store.call(command("ZRANGE", "h:files:expiry", "-inf", now_ms, "BYSCORE", "LIMIT", 0, limit))
    deleted = 0
    for file_id in map(text, due):
        if await store.call(_remove(store, file_id, by_age_at_ms=now_ms)) == "ok":
            await _erase(store, file_id, now_ms)
            deleted += 1
    return deleted


def too_large(store: Store) -> InvalidFile:
    """Return the error for a file beyond the limit, as CMD Executor's page words it."""
    return InvalidFile(f"File size exceeds {store.settings.upload_limit_bytes / MIB:g}MB limit")


def _missing() -> NotFound:
    return NotFound("File not found")


async def _load(store: Store, file_id: str) -> File | None:
    if not _ID.fullmatch(file_id):
        return None
    fields = await store.call(command("HGETALL", f"h:file:{file_id}", read=pairs))
    return _file(file_id, fields) if fields.get("state") else None


def _file(file_id: str, fields: dict[str, str]) -> File:
    state: Any = fields["state"]
    return File(
        id=file_id,
        state=state,
        filename=fields.get("filename", ""),
        size_bytes=int(fields.get("size") or 0),
        sha256=fields.get("sha256", ""),
        content_type=fields.get("type", _ANYTHING),
        uploaded_ms=int(fields.get("uploaded") or 0),
        expires_ms=int(fields["expires"]),
        uploaded_by=fields.get("by", ""),
        etag=fields.get("etag", ""),
    )


async def _announce(store: Store, **fields: str | int) -> str:
    file_id = store.new_id("file")
    words = [word for field in fields.items() for word in field]
    await store.call(script("file_open", file_id, store.now_ms() + PENDING_MS, *words))
    return file_id


async def _ready(store: Store, file_id: str, uploaded: Uploaded) -> File:
    def read(reply: list[Any]) -> File:
        if text(reply[0]) != "ok":
            raise _missing()
        return _file(file_id, pairs(reply[1:]))

    now_ms = store.now_ms()
    expires_ms = now_ms + store.settings.file_max_age_days * DAY_MS
    words = (now_ms, expires_ms, uploaded.size_bytes, uploaded.sha256, uploaded.etag)
    return await store.call(script("file_ready", file_id, *words, read=read))


def _remove(store: Store, file_id: str, *, actor: str = "", by_age_at_ms: int | None = None) -> Call[str]:
    now_ms = store.now_ms() if by_age_at_ms is None else by_age_at_ms
    by_age = "" if by_age_at_ms is None else "1"
    return script("file_remove", file_id, now_ms, actor, by_age, POSTPONED_MS, read=text)


async def _erase(store: Store, file_id: str, now_ms: int) -> None:
    """Delete the bytes of a removed file, then the rest of its record; whoever dies between leaves it due.

    So does a presigned address that may have been put to meanwhile, for a day.
    """
    await store.objects.delete(object_key(file_id))
    await store.call(script("file_forget", file_id, now_ms))


async def _discard(store: Store, file_id: str) -> None:
    """Drop an upload that came to nothing; what cannot be reached now is left to `expire_due`."""
    try:
        await store.call(_remove(store, file_id))
        await _erase(store, file_id, store.now_ms())
    except HostlerError:
        return
