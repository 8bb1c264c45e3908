"""Who is asking: a user, an API key or a worker, as established by its credentials."""

from dataclasses import dataclass
from typing import Literal

RoleLetter = Literal["r", "w", "a", "worker"]

#: The words for the letters, as CMD Executor's page shows roles.
ROLE_WORDS = {"r": "viewer", "w": "operator", "a": "admin"}


#: The letters of users and keys from the least to the most that they admit to.
LADDER = "rwa"


def lesser(one: str, other: str) -> str:
    """Return the role of the two that admits to less."""
    return min(one, other, key=LADDER.index)


def is_above(role: str, other: str) -> bool:
    """Tell whether a role admits to more than another one."""
    return LADDER.index(role) > LADDER.index(other)


@dataclass(frozen=True, slots=True)
class Identity:
    """One authenticated caller.

    `id` is the user's, the key's or the worker's; `user_id` is the user behind a session or a key. `role` is
    `r`, `w` or `a` for users and keys, `worker` for a worker's token. `token_id` is the session's `jti`, the
    key's id, or the worker's registration; `family` is what a session's tokens have in common from login to logout.
    `scope` names the one dialect that the caller may speak, empty where it may speak them all. A `listener` is
    whoever comes through a port that asks for no credentials.
    """

    kind: Literal["user", "key", "worker", "listener"]
    id: str
    role: RoleLetter
    name: str
    token_id: str
    by_cookie: bool = False
    user_id: str | None = None
    family: str = ""
    scope: str = ""

    @property
    def actor(self) -> str:
        """Return the name under which events and the audit log speak of this caller."""
        return f"{self.kind}:{self.id}"
