"""Logins: a name and a password become a user, and guessing is slowed down by account and by address."""

import hashlib

from storage import users
from storage.calls import script
from storage.errors import InvalidCredentials, TooMany
from storage.store import Store
from storage.users import User


async def login(store: Store, name: str, password: str, peer: str) -> User:
    """Return the user whose username or email is `name`, if `password` is its password.

    At most 5 logins fail in a minute for one name from one peer, 20 from one peer, and 100 in 15 minutes for
    one name. Raises InvalidCredentials, in the same time whether the account exists or not, or TooMany.
    """
    pair, others = _counters(name, peer)
    async with store.passwords.turn():
        limits = [word for counter in (pair, *others) for word in counter]
        wait_s = int(await store.call(script("login_attempt", *limits)))
        if wait_s:
            raise TooMany(f"Too many logins have failed; try again in {wait_s} s.", retry_after_s=wait_s)
        user = await users.named(store, name)
        correct = await store.passwords.verify(user.password_hash if user else None, password)
        actor = f"user:{user.id}" if user else "user:unknown"
        outcome = "ok" if correct else "failed"
        keys = (pair[0], *(counter[0] for counter in others))
        await store.call(script("login_result", store.now_ms(), actor, peer, outcome, *keys))
    if user is None or not correct:
        raise InvalidCredentials("Email or password incorrect")
    if store.passwords.outdated(user.password_hash):
        await users.rehash(store, user, password)
    return user


def _counters(name: str, peer: str) -> tuple[tuple[str, int, int], list[tuple[str, int, int]]]:
    """Return the counter of this name from this peer, and the others: key, limit, window in seconds.

    Names are counted as they are typed, known or not: the limits must not tell which accounts exist.
    """
    account = hashlib.sha256(users.name_key(name).encode()).hexdigest()[:32]
    return (f"h:throttle:pair:{account}:{peer}", 5, 60), [
        (f"h:throttle:peer:{peer}", 20, 60),
        (f"h:throttle:account:{account}", 100, 900),
    ]
