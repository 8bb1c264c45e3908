"""Which keys a recovery point holds: all of ours, but for what passes by itself and what follows from the rest."""

#: What is only true while processes run, or for a moment; they say it anew.
_PASSING = (
    "h:leader", "h:reaper:", "h:proc:", "h:worker:", "h:workers", "h:rate:", "h:throttle:", "h:relay:", "h:handoff:",
    "h:ready:", "h:events", "h:applog:", "h:appsamples:", "h:census", "h:recovery", "h:rebuild", "rq:worker",
    "rq:execution:", "rq:wip:", "rq:clean", "rq:scheduler-lock",
)  # fmt: skip
#: What a rebuild makes anew from the records, so that it agrees with them although they were read one after another.
_DERIVED = (
    "h:jobs:", "h:key:", "h:keywait:", "h:children:", "h:apps:", "h:product:", "h:user:by:", "h:users:", "rq:queue:",
    "rq:scheduled:", "rq:deferred:",
)  # fmt: skip
_DERIVED_EXACTLY = frozenset({
    "h:jobs", "h:ended", "h:leases", "h:delayed", "h:parked", "h:cancels", "h:dependents", "h:apps", "h:schedules",
    "h:users", "h:audit:head", "rq:queues",
})  # fmt: skip
#: What sessions live by.
_SESSIONS = ("h:keyring", "h:revoked:")
#: Records that somebody wanted; all else of ours is written by processes that find an empty Redis and start.
_RECORDS = frozenset({
    "user", "apikey", "job", "batch", "schedule", "file", "release", "app", "backup", "backuprecord",
    "subcuby", "marketplace",
})  # fmt: skip

#: Records that have two names: a product's release, a backup's record.
_OF_TWO = frozenset({"release", "backuprecord"})


def is_ours(key: str) -> bool:
    """Tell whether a key is one of Hostler's."""
    return key.startswith(("h:", "rq:"))


def is_captured(key: str) -> bool:
    """Tell whether a recovery point holds the key."""
    return is_ours(key) and not key.startswith((*_PASSING, *_DERIVED)) and key not in _DERIVED_EXACTLY


def is_of_sessions(key: str) -> bool:
    """Tell whether sessions live by the key."""
    return key.startswith(_SESSIONS)


def says_nothing(key: str) -> bool:
    """Tell whether a Redis that holds the key beside others like it counts as empty."""
    return is_ours(key) and kind(key) not in _RECORDS


def kind(key: str) -> str | None:
    """Return of which kind of thing the key is the record: `job` of `h:job:<id>`; None of none."""
    parts = key.split(":")
    if parts[0] != "h" or len(parts) < 3 or parts[1] not in _RECORDS:
        return None
    return parts[1] if len(parts) == (4 if parts[1] in _OF_TWO else 3) else None
