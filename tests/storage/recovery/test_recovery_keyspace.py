"""Which keys a recovery point holds is decided for every key there is."""

import re

from storage import store
from storage.recovery import keyspace

#: What a recovery point holds. Whoever adds a key to storage/store.py decides here, or in keyspace.py, what it is.
HELD = {
    "h:job:", "h:batch:", "h:batches", "h:archived", "h:idem:", "h:tagsets", "h:webhooks", "h:log:", "h:logparts:",
    "h:artifacts:", "h:needs:", "h:quarantine", "h:deaths:", "h:schedule:", "h:user:", "h:apikey:", "h:apikeys",
    "h:apikeys:", "h:keyring", "h:revoked:", "h:marketplace:key", "h:marketplace:", "h:setup", "h:autostart",
    "h:subcuby:", "h:subcubies", "h:file:", "h:files", "h:files:expiry", "h:products", "h:releases:", "h:release:",
    "h:app:", "h:appruns:", "h:backup:", "h:backups", "h:backups:due", "h:backups:gone", "h:backuprecord:", "h:audit",
    "h:tally", "h:noted",
}  # fmt: skip
#: Channels, which hold nothing.
CHANNELS = {"h:wake", "h:queued", "h:out:", "h:control:", "h:offer:", "h:applogs:"}


def test_every_key_of_the_keyspace_is_held_passing_or_derived() -> None:
    assert store.__doc__ is not None
    named = {match.split("<")[0] for match in re.findall(r"\bh:[a-z:]+(?:<)?", store.__doc__)}
    held = {name for name in named if keyspace.is_captured(name if not name.endswith(":") else f"{name}x")}
    assert held - CHANNELS - HELD - {"h:"} == set()
    assert HELD - held == set()


def test_only_records_that_somebody_wanted_make_a_redis_not_empty() -> None:
    started = (
        "h:keyring",
        "h:audit",
        "h:worker:w",
        "h:workers",
        "h:ready:jobs.high",
        "h:leader",
        "rq:queues",
        "h:noted",
    )
    assert all(keyspace.says_nothing(name) for name in started)
    wanted = (
        "h:user:u",
        "h:job:j",
        "h:app:a",
        "h:file:f",
        "h:backup:b",
        "h:schedule:s",
        "h:release:p:1.0",
        "celery",
        "h",
    )
    assert not any(keyspace.says_nothing(name) for name in wanted)
