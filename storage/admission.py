"""Who may come in: credentials become an identity, and a rate is kept, in one round trip to Redis."""

import logging
from dataclasses import dataclass
from typing import Any, Literal

from storage import api_keys, sessions
from storage.api_keys import ApiKey
from storage.calls import Word, script, text
from storage.errors import Unauthenticated
from storage.identity import Identity, lesser
from storage.seal import Forged
from storage.sessions import Claims
from storage.store import Store
from storage.users import User

log = logging.getLogger("hostler.storage")

#: How many callers a process remembers.
_MOST_KNOWN = 10_000


@dataclass(frozen=True, slots=True)
class Presented:
    """A credential as it came: a bearer may hold any, the other ways hold one kind each."""

    by: Literal["bearer", "key", "worker", "cookie"]
    secret: str


@dataclass(frozen=True, slots=True)
class Admission:
    """Whether a request may go on, as whom, and what is left of the second's budget."""

    identity: Identity | None
    allowed: bool
    limit: int
    remaining: int
    reset_ms: int
    user: bytes = b""  #: the records by which the identity was known, as they lie in Redis
    key: bytes = b""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of Redis about a credential that is ours by its form."""

    kind: str = ""
    subject: str = ""
    token_id: str = ""
    family: str = ""
    generation: int = 0


async def admit(
    store: Store, presented: Presented | None, address: str, *, counted: bool = True
) -> Admission:
    """Return whether a request from `address` may go on, and as whom.

    It counts for its identity, else for its address. A long connection asks again with `counted=False`.
    Raises Unavailable.
    """
    asked = await question(store, presented)
    limit = store.settings.rate_limit_per_s if counted else 0
    known, allowed, remaining, reset_ms, user, key = await store.call(
        script(
            "admit",
            asked.kind,
            asked.subject,
            asked.token_id,
            asked.family,
            asked.generation,
            address,
            limit,
        )
    )
    identity = _identity(store, asked, presented, user, key) if known else None
    result = Admission(identity, bool(allowed), limit, int(remaining), int(reset_ms), user, key)
    if presented is not None and counted:
        _remember(store, asked, presented.by == "cookie", result)
    return result


async def question(store: Store, presented: Presented | None) -> Question:
    """Return what to ask of Redis about a credential; nothing where it is none of ours by its form."""
    if presented is None:
        return Question()
    if presented.secret.startswith(api_keys.PREFIX) and presented.by in {"bearer", "key"}:
        return Question("key", api_keys.digest_of(presented.secret))
    if presented.by == "key":
        return _chosen(store, presented)
    try:
        claims: Claims = await sessions.read(store, presented.secret)
    except Unauthenticated:
        return _chosen(store, presented) if presented.by == "bearer" else Question()
    if presented.by in {"worker", "cookie"} and (presented.by == "worker") != (claims.kind == "worker"):
        return Question()
    return Question(claims.kind, claims.subject, claims.token_id, claims.family, claims.generation)


def _chosen(store: Store, presented: Presented) -> Question:
    """Return the question about a key that somebody has chosen by themselves."""
    return Question("key", api_keys.digest_of_chosen(store.seal, presented.secret))


def _identity(
    store: Store, question: Question, presented: Presented | None, user_raw: Any, key_raw: Any
) -> Identity | None:
    """Return who a current credential stands for, if the records are the ones that we signed."""
    if question.kind == "worker":
        return Identity("worker", question.subject, "worker", question.subject, question.token_id)
    try:
        if question.kind == "session":
            user = User.opened(store.seal, question.subject, user_raw)
            by_cookie = presented is not None and presented.by == "cookie"
            return Identity(
                "user", user.id, user.role, user.username, question.token_id, by_cookie, user.id, question.family
            )  # fmt: skip
        key = ApiKey.opened(store.seal, question.subject, key_raw)
        owner = User.opened(store.seal, key.owner, user_raw)
    except Forged:
        log.error(
            "a forged record was presented and is not believed",
            extra={"record": text(question.subject.encode())},
        )
        return None
    role: Any = lesser(key.role, owner.role)
    by_cookie = presented is not None and presented.by == "cookie"
    token_id = question.token_id or key.id
    return Identity("key", key.id, role, key.name, token_id, by_cookie, owner.id, question.family, key.scope)


@dataclass(frozen=True, slots=True)
class Known:
    """A caller as this process has known it: the words by which the script recognises it."""

    identity: Identity
    words: tuple[Word, ...]


def _remember(store: Store, asked: Question, by_cookie: bool, result: Admission) -> None:
    """Keep what a full admission has found, so that the caller's next steps can carry theirs."""
    if result.identity is None:
        return
    known = _all_known(store)
    if len(known) >= _MOST_KNOWN:
        known.clear()
    known[asked, by_cookie] = Known(result.identity, _words(asked, result))


def _all_known(store: Store) -> dict[tuple[Question, bool], Known]:
    kept = store.cache.get("callers")
    if not isinstance(kept, dict):
        kept = store.cache["callers"] = {}
    return kept


def _words(asked: Question, result: Admission) -> tuple[Word, ...]:
    if asked.kind == "worker":
        name = f"worker:{asked.subject}"
        return f"h:rate:{name}", f"h:{name}", asked.token_id, 0
    held: dict[str, bytes] = {}
    if asked.kind == "session":
        held[f"h:revoked:{asked.token_id}"] = b""
        held[f"h:user:{asked.subject}"] = result.user
        rate = f"h:rate:user:{asked.subject}"
    else:
        owner = result.identity.user_id if result.identity else ""
        held[f"h:apikey:{asked.subject}"] = result.key
        held[f"h:user:{owner}"] = result.user
        rate = f"h:rate:key:{asked.subject}"
    if asked.family:
        held[f"h:revoked:{asked.family}"] = b""
    return rate, "", "", len(held), *held, *held.values()


async def recognise(store: Store, presented: Presented) -> Known | None:
    """Return the caller that a credential stood for when it last came, if this process remembers."""
    asked = await question(store, presented)
    return _all_known(store).get((asked, presented.by == "cookie"))


def recognise_key(store: Store, secret: str) -> Known | None:
    """Return whom an API key stood for when it last came, if this process remembers; other credentials are unknown."""
    if not secret.startswith(api_keys.PREFIX):
        return None
    return _all_known(store).get((Question("key", api_keys.digest_of(secret)), False))
