"""Clients of the object store: how they connect, how patient they are, and how refusals are put into our words."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from settings import Settings, is_loopback
from storage.errors import Conflict, NotFound, Unavailable

# boto3 takes a quarter of a second to read, and most processes touch the store only now and then
if TYPE_CHECKING:
    import boto3
    from mypy_boto3_s3 import S3Client

log = logging.getLogger("hostler.storage")

#: Blocking calls at once.
THREADS = 16

#: Making a client reads a megabyte of descriptions, once a session; sessions do not lock for themselves.
_MAKING = threading.Lock()

MISSING = {"404", "NoSuchKey", "NotFound", "NoSuchUpload"}

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


@contextmanager
def in_our_words(what: str) -> Iterator[None]:
    """Turn whatever boto3 raises over the object `what` into NotFound, Conflict or Unavailable."""
    from boto3.exceptions import Boto3Error  # noqa: PLC0415  see above
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415
    from urllib3.exceptions import HTTPError  # noqa: PLC0415

    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in MISSING:
            raise NotFound(f"There is no object {what}.") from None
        if code in {"412", "PreconditionFailed"}:
            raise Conflict(f"The object {what} was replaced meanwhile.") from None
        log.warning("the object store refused", extra={"object": what, "code": code})
        raise Unavailable(f"The object store refuses for now: {code}.", retry_after_s=5) from error
    except (BotoCoreError, Boto3Error, HTTPError, ConnectionError, TimeoutError) as error:
        # boto3's transfers wrap the refusal
        if isinstance(error.__cause__ or error.__context__, ClientError):
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


def _in_the_clear(endpoint: str) -> bool:
    """Tell whether others could change a body on its way, so that its hash is worth a pass over every part.

    TLS keeps them from it, and on loopback there are none. Whether a store looks at the hash is up to it; SeaweedFS
    does not.
    """
    url = urlsplit(endpoint)
    return url.scheme == "http" and not is_loopback(url.hostname or "")


class Clients:
    """What calls the store, one client of each kind; the first call makes it. Any thread may ask."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._made: dict[str, S3Client] = {}

    def of(self, kind: str) -> "S3Client":
        """Return the client of a kind: work, parts, public or probe."""
        with _MAKING:
            if kind not in self._made:
                with in_our_words(self._settings.s3_bucket):
                    self._made[kind] = self._connected(kind)
            return self._made[kind]

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
                "payload_signing_enabled": _in_the_clear(endpoint or ""),
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

    def close(self) -> None:
        """Let go of connections; calls under way end by themselves."""
        with _MAKING:
            for client in self._made.values():
                client.close()
            self._made.clear()
