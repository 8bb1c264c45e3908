"""What the secret key protects: signatures on records that Redis could forge, and secrets at rest."""

import base64
import hmac
import os
from typing import Any

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from storage.errors import HostlerError


class Forged(HostlerError):
    """A record in Redis does not carry the signature that only a holder of the secret key can make."""

    code = "FORGED_RECORD"


class Seal:
    """Signs and encrypts under keys derived from `HOSTLER_SECRET_KEY`, a different one for each purpose."""

    def __init__(self, secret_key: str) -> None:
        self._root = secret_key.encode()
        self._keys: dict[str, bytes] = {}
        self._codes: dict[str, hmac.HMAC] = {}  # fed with the key alone: half of what a short message takes

    def key(self, purpose: str) -> bytes:
        """Return the 32-byte key for one purpose (RFC 5869)."""
        if purpose not in self._keys:
            info = b"hostler " + purpose.encode()
            self._keys[purpose] = HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(self._root)
        return self._keys[purpose]

    def signature(self, purpose: str, *parts: str | bytes) -> str:
        """Return the signature over `parts`, none of which can be moved into its neighbour."""
        message = bytearray()
        for part in parts:
            raw = part.encode() if isinstance(part, str) else part
            message += len(raw).to_bytes(8, "big") + raw
        if purpose not in self._codes:
            self._codes[purpose] = hmac.new(self.key(purpose), digestmod="sha256")
        code = self._codes[purpose].copy()
        code.update(message)
        return base64.urlsafe_b64encode(code.digest()).decode().rstrip("=")

    def check(self, purpose: str, signature: str, *parts: str | bytes) -> None:
        """Raise Forged unless `signature` is the one over `parts`."""
        if not hmac.compare_digest(signature.encode(), self.signature(purpose, *parts).encode()):
            raise Forged(f"A {purpose} record does not carry a valid signature.")

    @property
    def fingerprint(self) -> str:
        """Return what tells secret keys apart and nothing of them: 16 hex digits."""
        return self.key("fingerprint").hex()[:16]

    def seal_bytes(self, purpose: str, secret: bytes, *, bound_to: str) -> bytes:
        """Return `secret` sealed with AES-256-GCM; it opens only under the same purpose and `bound_to`."""
        nonce = os.urandom(12)
        return nonce + AESGCM(self.key(purpose)).encrypt(nonce, secret, bound_to.encode())

    def open_bytes(self, purpose: str, sealed: bytes, *, bound_to: str) -> bytes:
        """Return what `seal_bytes` sealed. Raises Forged when it was altered, moved, or sealed under another key."""
        try:
            return AESGCM(self.key(purpose)).decrypt(sealed[:12], sealed[12:], bound_to.encode())
        except (InvalidTag, ValueError):
            raise Forged(f"A sealed {purpose} cannot be opened with this HOSTLER_SECRET_KEY.") from None

    def encrypt(self, purpose: str, secret: bytes, *, bound_to: str) -> str:
        """Return `secret` sealed as by `seal_bytes`, as text."""
        return base64.urlsafe_b64encode(self.seal_bytes(purpose, secret, bound_to=bound_to)).decode()

    def encrypt_json(self, purpose: str, value: object, *, bound_to: str) -> str:
        """Seal a value as JSON."""
        return self.encrypt(purpose, orjson.dumps(value), bound_to=bound_to)

    def decrypt_json(self, purpose: str, sealed: str, *, bound_to: str) -> Any:
        """Return the value that `encrypt_json` sealed. Raises Forged."""
        return orjson.loads(self.decrypt(purpose, sealed, bound_to=bound_to))

    def decrypt(self, purpose: str, sealed: str, *, bound_to: str) -> bytes:
        """Return what `encrypt` sealed. Raises Forged when it was altered, moved, or sealed under another key."""
        try:
            raw = base64.urlsafe_b64decode(sealed)
        except ValueError:
            raise Forged(f"A sealed {purpose} cannot be opened with this HOSTLER_SECRET_KEY.") from None
        return self.open_bytes(purpose, raw, bound_to=bound_to)
