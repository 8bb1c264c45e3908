"""Repositories of restic that open at once: their key is stretched once instead of for half a second at each call.

What is made here is what `restic init` leaves, but for the cost of its key, after restic's doc/design.rst.
"""

import hashlib
import json
import secrets
from base64 import b64encode
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.poly1305 import Poly1305

#: An irreducible polynomial of degree 53, which says where files are cut.
POLYNOMIAL = "3fd0ed85a02d07"


def _text(data: bytes) -> str:
    return b64encode(data).decode()


@dataclass(frozen=True)
class _Keys:
    """What encrypts, and what authenticates by Poly1305-AES."""

    encrypt: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    mac_k: bytes = field(default_factory=lambda: secrets.token_bytes(16))
    mac_r: bytes = field(default_factory=lambda: _clamped(secrets.token_bytes(16)))

    def seal(self, plain: bytes) -> bytes:
        nonce = secrets.token_bytes(16)
        sealed = Cipher(algorithms.AES(self.encrypt), modes.CTR(nonce)).encryptor().update(plain)
        block = Cipher(algorithms.AES(self.mac_k), modes.ECB()).encryptor().update(nonce)  # noqa: S305  one block
        return nonce + sealed + Poly1305.generate_tag(_clamped(self.mac_r) + block, sealed)

    def shown(self) -> dict[str, Any]:
        return {"mac": {"k": _text(self.mac_k), "r": _text(self.mac_r)}, "encrypt": _text(self.encrypt)}


def _clamped(r: bytes) -> bytes:
    kept = int.from_bytes(r, "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
    return kept.to_bytes(16, "little")


def objects_of(password: str) -> dict[str, bytes]:
    """Return a new, empty repository that `password` opens, as the content of each object by its name."""
    salt, master = secrets.token_bytes(64), _Keys()
    cost = {"n": 2, "r": 8, "p": 1}
    user = hashlib.scrypt(password.encode(), salt=salt, dklen=64, **cost)
    data = _Keys(user[:32], user[32:48], user[48:]).seal(json.dumps(master.shown()).encode())
    key = json.dumps({
        "created": "2025-01-01T00:00:00Z", "username": "", "hostname": "", "kdf": "scrypt", "N": cost["n"],
        "r": cost["r"], "p": cost["p"], "salt": _text(salt), "data": _text(data),
    }).encode()  # fmt: skip
    config = {"version": 2, "id": secrets.token_hex(32), "chunker_polynomial": POLYNOMIAL}
    return {
        f"keys/{hashlib.sha256(key).hexdigest()}": key,
        "config": master.seal(json.dumps(config).encode()),
    }
