"""The keys that sign tokens: a sealed ring in Redis, made once, and turned without ending sessions."""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from storage.calls import Call, command, pairs, script, text
from storage.errors import Unauthenticated
from storage.seal import Forged, Seal

# jwt brings all of cryptography, 6 MiB and 0.07 s of CPU; workers and schedulers hold a ring and hardly ever use it.

log = logging.getLogger("hostler.storage")

ISSUER = AUDIENCE = "hostler"
#: A process reads the ring again after so long, so that a key taken off it stops counting.
MAX_AGE_S = 5.0
#: Clocks of two hosts may differ by so much.
LEEWAY_S = 10
FOREIGN = "The keyring in Redis was made under another HOSTLER_SECRET_KEY."
_MAX_TOKEN_CHARS = 4096
_MAX_KEPT = 10_000
_KEY_ID = re.compile(r"([0-9a-f]{16})([A-Za-z0-9_-]{11})")


def read_ahead() -> None:
    """Read what signing needs, in a process whose children are going to sign and read tokens."""
    import jwt  # noqa: F401, PLC0415  see above


class _Carry(Protocol):
    """What carries a step out in Redis."""

    def __call__(self, call: Call[Any], /) -> Awaitable[Any]: ...


class Keyring:
    """Signs claims with HS256 and reads them back; what else a token's header offers is not looked at."""

    def __init__(self, carry: _Carry, seal: Seal, now_s: Callable[[], float] = time.monotonic) -> None:
        self._carry, self._seal, self._now_s = carry, seal, now_s
        self._keys: dict[str, bytes] = {}
        self._current = ""
        self._loaded_s = -MAX_AGE_S
        self._loading = asyncio.Lock()
        self._read: dict[str, tuple[str, dict[str, Any]]] = {}

    async def sign(self, claims: dict[str, Any]) -> str:
        """Return a token that carries `claims`, from us and for us, signed with the current key."""
        import jwt  # noqa: PLC0415  see above

        await self._fresh()
        issued = {"iss": ISSUER, "aud": AUDIENCE, **claims}
        return jwt.encode(
            issued, self._keys[self._current], algorithm="HS256", headers={"kid": self._current}
        )

    async def read(self, token: str) -> dict[str, Any]:
        """Return the claims of a token that we signed; whether it has expired is the reader's question.

        Raises Unauthenticated.
        """
        import jwt  # noqa: PLC0415  see above

        await self._fresh()
        kept = self._read.get(token)
        if kept is not None and kept[0] in self._keys:
            return kept[1]
        kid = self._key_id(token)
        if kid not in self._keys:
            await self._load("ensure")  # another process may have turned the ring
        if kid not in self._keys:
            raise Unauthenticated("The token is signed with a key that is not in use.")
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                self._keys[kid],
                algorithms=["HS256"],
                audience=AUDIENCE,
                issuer=ISSUER,
                leeway=LEEWAY_S,
                options={"verify_exp": False, "require": ["iat", "sub", "jti"], "strict_aud": True},
            )
        except jwt.PyJWTError:
            raise Unauthenticated("The token is not valid.") from None
        if len(self._read) >= _MAX_KEPT:
            self._read.clear()
        self._read[token] = (kid, claims)
        return claims

    async def check(self) -> None:
        """Make sure that the ring exists and opens. Raises Forged under another secret key."""
        await self._fresh()

    async def recognise(self) -> None:
        """Raise Forged where the ring that is there was made under another secret key, Unavailable without Redis.

        Who holds another key takes all that was signed for spoilt, and would end jobs that are sound.
        """
        match = _KEY_ID.fullmatch(await self._carry(command("HGET", "h:keyring", "current", read=text)))
        if match is not None and match[2] != self._tag(match[1]):
            raise Forged(FOREIGN)

    async def rotate(self, actor: str) -> None:
        """Sign with a new key from now on; tokens signed with the old ones stay good until they expire."""
        await self._load("rotate", actor)

    def _key_id(self, token: str) -> str:
        """Return the key id that a token names. Ids carry a tag, so that invented ones cost no look-up."""
        import jwt  # noqa: PLC0415  see above

        if len(token) > _MAX_TOKEN_CHARS:
            raise Unauthenticated("The token is too long to be ours.")
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError:
            raise Unauthenticated("The token is not a JSON Web Token.") from None
        match = _KEY_ID.fullmatch(str(header.get("kid")))
        if (
            header.get("alg") != "HS256"
            or "crit" in header
            or match is None
            or match[2] != self._tag(match[1])
        ):
            raise Unauthenticated("The token was not issued here.")
        return match[0]

    def _tag(self, number: str) -> str:
        return self._seal.signature("jwt-key-id", number)[:11]

    async def _fresh(self) -> None:
        if self._now_s() - self._loaded_s >= MAX_AGE_S:
            async with self._loading:
                if self._now_s() - self._loaded_s >= MAX_AGE_S:
                    await self._load("ensure")

    async def _load(self, mode: str, actor: str = "system") -> None:
        number = secrets.token_hex(8)
        kid = number + self._tag(number)
        sealed = self._seal.encrypt("jwt-key", secrets.token_bytes(32), bound_to=kid)
        ring = await self._carry(
            script("keyring", time.time_ns() // 1_000_000, actor, kid, sealed, mode, read=pairs)
        )
        keys: dict[str, bytes] = {}
        for name, value in ring.items():
            if name.startswith("key:"):
                try:
                    keys[name[4:]] = self._seal.decrypt("jwt-key", value, bound_to=name[4:])
                except Forged:
                    log.error(
                        "a key of the keyring cannot be opened and is left out", extra={"kid": name[4:]}
                    )
        if ring["current"] not in keys:
            raise Forged(FOREIGN)
        self._keys, self._current, self._loaded_s = keys, ring["current"], self._now_s()
