"""Who may come in: credentials become an identity, and a rate is kept, in one round trip to Redis."""

import logging
from dataclasses import dataclass
from typing import Any, Literal

from storage import api_keys, sessions
from storage.api_keys import ApiKey
from storage.calls import script, text
from storage.errors import Unauthenticated
from storage.identity import Identity, lesser
from storage.seal import Forged
from storage.sessions import Claims
from storage.store import Store
from storage.users import User

log = logging.getLogger("hostler.storage")


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


@dataclass(frozen=True, slots=True)
class _Question:
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
    question = await _question(store, presented)
    limit = store.settings.rate_limit_per_s if counted else 0
    known, allowed, remaining, reset_ms, user, key = await store.call(
        script(
            "admit",
            question.kind,
            question.subject,
            question.token_id,
            question.family,
            question.generation,
            address,
            limit,
        )
    )
    identity = _identity(store, question, presented, user, key) if known else None
    return Admission(identity, bool(allowed), limit, int(remaining), int(reset_ms))


async def _question(store: Store, presented: Presented | None) -> _Question:
    if presented is None:
        return _Question()
    if presented.secret.startswith(api_keys.PREFIX) and presented.by in {"bearer", "key"}:
        return _Question("key", api_keys.digest_of(presented.secret))
    chosen = _Question("key", api_keys.digest_of_chosen(store.seal, presented.secret))
    if presented.by == "key":
        return chosen
    try:
        claims: Claims = await sessions.read(store, presented.secret)
    except Unauthenticated:
        return chosen if presented.by == "bearer" else _Question()
    if presented.by in {"worker", "cookie"} and (presented.by == "worker") != (claims.kind == "worker"):
        return _Question()
    return _Question(claims.kind, claims.subject, claims.token_id, claims.family, claims.generation)


def _identity(
    store: Store, question: _Question, presented: Presented | None, user_raw: Any, key_raw: Any
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
