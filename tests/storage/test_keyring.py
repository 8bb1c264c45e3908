"""The keyring: one for all processes, sealed at rest, and deaf to every token that it did not sign."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from typing import Any

import jwt
import pytest
import redis

from settings import Settings
from storage.errors import Unauthenticated
from storage.keyring import MAX_AGE_S, Keyring
from storage.seal import Forged, Seal
from storage.store import Store

CLAIMS = {
    "typ": "session",
    "sub": "user-1",
    "jti": "j",
    "iat": int(time.time()),
    "exp": int(time.time()) + 3600,
}


def part(value: Any) -> str:
    """Return one part of a token, as a forger would write it."""
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def parts_of(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    return jwt.get_unverified_header(token), jwt.decode(token, options={"verify_signature": False})


async def resigned(store: Store, claims: dict[str, Any], header: dict[str, Any]) -> str:
    """Return a token signed with the true key, with claims and header that we would not write."""
    await store.keyring.check()
    kid = store.keyring._current
    text = f"{part({'alg': 'HS256', 'kid': kid, **header})}.{part({'iss': 'hostler', 'aud': 'hostler', **claims})}"
    signature = hmac.new(store.keyring._keys[kid], text.encode(), hashlib.sha256).digest()
    return f"{text}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


async def test_what_was_signed_is_read_back(store: Store) -> None:
    assert (await store.keyring.read(await store.keyring.sign(CLAIMS))).items() >= CLAIMS.items()


async def test_processes_that_start_at_once_agree_on_one_key(settings: Settings) -> None:
    stores = [Store(settings) for _ in range(8)]
    tokens = await asyncio.gather(*(store.keyring.sign(CLAIMS) for store in stores))
    assert len({jwt.get_unverified_header(token)["kid"] for token in tokens}) == 1
    for store in stores:
        await store.keyring.read(tokens[0])
        await store.close()


async def test_the_key_is_sealed_in_redis_and_does_not_open_under_another_secret(
    store: Store, redis_client: redis.Redis
) -> None:
    await store.keyring.check()
    stored = b"".join(redis_client.hvals("h:keyring"))
    for key in store.keyring._keys.values():
        assert key not in stored
        assert base64.urlsafe_b64encode(key).rstrip(b"=") not in stored
    stranger = Keyring(store.call, Seal("another secret key, also long enough"))
    with pytest.raises(Forged):
        await stranger.check()


async def test_a_turned_ring_signs_with_a_new_key_and_still_reads_the_old(
    store: Store, settings: Settings
) -> None:
    other = Store(settings)
    old = await store.keyring.sign(CLAIMS)
    await other.keyring.read(old)
    await store.keyring.rotate("user:admin")
    new = await store.keyring.sign(CLAIMS)
    assert jwt.get_unverified_header(new)["kid"] != jwt.get_unverified_header(old)["kid"]
    await store.keyring.read(old)
    await other.keyring.read(new)  # though it read the ring before it was turned
    await other.close()


async def test_a_key_taken_off_the_ring_stops_counting_within_seconds(
    store: Store, redis_client: redis.Redis
) -> None:
    now_s = 0.0
    ring = Keyring(store.call, store.seal, lambda: now_s)
    token = await ring.sign(CLAIMS)
    await ring.read(token)
    await store.keyring.rotate("user:admin")
    redis_client.hdel("h:keyring", f"key:{jwt.get_unverified_header(token)['kid']}")
    now_s += MAX_AGE_S
    with pytest.raises(Unauthenticated):
        await ring.read(token)


async def test_a_ring_is_recognised_under_its_own_secret_key_and_before_there_is_one(store: Store) -> None:
    stranger = Keyring(store.call, Seal("another secret key, also long enough"))
    await stranger.recognise()
    await store.keyring.check()
    await store.keyring.recognise()
    with pytest.raises(Forged, match="another HOSTLER_SECRET_KEY"):
        await stranger.recognise()


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", "", "HS384", "RS256", "ES256"])
async def test_a_token_of_another_algorithm_is_refused(store: Store, algorithm: str) -> None:
    token = await store.keyring.sign(CLAIMS)
    header, claims = parts_of(token)
    signature = token.rpartition(".")[2]
    for tail in ("", signature):
        with pytest.raises(Unauthenticated):
            await store.keyring.read(f"{part({**header, 'alg': algorithm})}.{part(claims)}.{tail}")


async def test_a_token_without_or_with_an_altered_signature_is_refused(store: Store) -> None:
    token = await store.keyring.sign(CLAIMS)
    head, body, signature = token.split(".")
    swapped = ("A" if signature[0] != "A" else "B") + signature[1:]
    altered = part({**parts_of(token)[1], "sub": "user-2"})
    for forged in (
        f"{head}.{body}.",
        f"{head}.{body}",
        f"{head}.{body}.{swapped}",
        f"{head}.{altered}.{signature}",
    ):
        with pytest.raises(Unauthenticated):
            await store.keyring.read(forged)


@pytest.mark.parametrize(
    "kid",
    ["../../dev/null", "' OR 1=1 --", "", None, 7, ["a"], "0" * 16 + "A" * 11, "current", "key:current"],
)
async def test_an_invented_key_id_is_refused_without_a_look_into_redis(store: Store, kid: Any) -> None:
    token = await store.keyring.sign(CLAIMS)
    header, claims = parts_of(token)
    asked = 0

    async def counted(call: Any) -> Any:
        nonlocal asked
        asked += 1
        return await store.call(call)

    ring = Keyring(counted, store.seal)
    await ring.check()
    forged = f"{part({**header, 'kid': kid})}.{part(claims)}.{token.rpartition('.')[2]}"
    with pytest.raises(Unauthenticated):
        await ring.read(forged)
    assert asked == 1


async def test_keys_that_a_token_brings_along_are_not_used(store: Store) -> None:
    own = jwt.encode(
        CLAIMS,
        "k" * 32,
        algorithm="HS256",
        headers={
            "jwk": {"kty": "oct", "k": base64.urlsafe_b64encode(b"k" * 32).decode()},
            "jku": "http://127.0.0.1:9/keys.json",
            "x5u": "http://127.0.0.1:9/cert.pem",
            "kid": (await _kid(store)),
        },
    )
    with pytest.raises(Unauthenticated):
        await store.keyring.read(own)


async def _kid(store: Store) -> str:
    return str(jwt.get_unverified_header(await store.keyring.sign(CLAIMS))["kid"])


@pytest.mark.parametrize(
    ("claims", "header"),
    [
        ({"aud": "somebody else"}, {}),
        ({"aud": ["hostler", "somebody else"]}, {}),
        ({"iss": "somebody else"}, {}),
        ({"nbf": int(time.time()) + 3600}, {}),
        ({"iat": int(time.time()) + 3600}, {}),
        ({"iat": "yesterday"}, {}),
        ({"sub": 7}, {}),
        ({"jti": None}, {}),
        ({}, {"crit": ["exp"]}),
        ({}, {"crit": ["unknown"], "unknown": True}),
        ({}, {"crit": []}),
        ({}, {"crit": ["b64"], "b64": True}),  # the one extension that the library would go along with
    ],
)
async def test_a_token_with_claims_or_headers_that_we_do_not_write_is_refused(
    store: Store, claims: dict[str, Any], header: dict[str, Any]
) -> None:
    await store.keyring.read(await resigned(store, CLAIMS, {}))  # such a token is believed as it stands
    with pytest.raises(Unauthenticated):
        await store.keyring.read(await resigned(store, {**CLAIMS, **claims}, header))


@pytest.mark.parametrize("token", ["", ".", "..", "a.b.c", "x" * 5000, "\u00e9.\u00e9.\u00e9", "e30.e30.e30"])
async def test_what_is_no_token_is_refused(store: Store, token: str) -> None:
    with pytest.raises(Unauthenticated):
        await store.keyring.read(token)
