"""Everything Hostler remembers: start here to learn the keyspace.

h:job:<id>              a job's record (hash); storage/jobs.py names its fields
h:jobs, h:jobs:<state>  ids by creation time (ms); likewise h:jobs:worker:<id> and h:jobs:tag:<tag>
h:ended                 ids of finished jobs by the time they ended (ms)
h:batch:<id>, h:batch:<id>:jobs                  a batch of jobs, and those of it that are not made yet
h:batches               ids of batches that were accepted and are not made whole yet
h:archived              how many jobs have left Redis for the object store
h:idem:<actor>:<key>    what a submit under an Idempotency-Key was answered
h:delayed, h:parked     ids of jobs that wait for a time (ms); of all that wait outside of their queue
h:tagsets               the tag sets that jobs have asked for
h:cancels, h:webhooks   ids of running jobs that shall end, of ended ones that somebody is to be told of (ms)
h:leader, h:leader:term, h:leader:asked          who leads the schedulers, and when one of them last asked to
h:reaper:*              when the leader last looked for the dead, and until when it waits after an absence of Redis
h:leases                ids of running jobs by the time their lease ends (ms)
h:proc:<worker>         ids a worker holds
h:log:<id>, h:logparts:<id>, h:artifacts:<id>    what a job says and leaves behind; a short log ends in its record
h:needs:<id>, h:children:<id>                    what a job depends on, and what depends on it
h:dependents            "<id> <state>" of jobs that ended and have dependents yet to be seen to (ms)
h:quarantine, h:deaths:<id>                      jobs that lost too many workers, and how they did
h:key:<key>, h:keywait:<key>                     who holds a concurrency key, and who waits for it
h:schedule:<id>, h:schedules                     recurring jobs, and when each is next due (ms)
h:worker:<id>, h:workers, h:workers:seen         workers and agents
h:user:<id>, h:users, h:users:admins             users: signed record, ids by creation (ms)
h:user:by:<name or email>                        a user's id
h:apikey:<digest>, h:apikeys, h:apikeys:<owner>  API keys: signed record, digests by id
h:keyring, h:revoked:<jti or family>             sessions: sealed signing keys, what was ended before its time
h:handoff:<digest>      a token that becomes a session once
h:marketplace:key, h:marketplace:<courses|videos>  the key for the marketplace above; lists that an admin keeps
h:setup, h:autostart    when an admin said that the set-up is complete; whether new apps come back after a reboot
h:subcuby:<name>, h:subcubies                    other Hostlers whose ProcessCubes are shown here, and what they showed
h:rate:<who>, h:throttle:<what>:<who>            times of recent requests, counts of failed logins
h:file:<id>, h:files, h:files:expiry             uploads        h:file:<id>:jobs   jobs that were given one
h:file:<id>:releases    releases that consist of an upload, which keep it
h:products, h:releases:<product>                 ids of products, versions of one, by publication (ms)
h:release:<product>:<version>                    a release: signed record
h:app:<id>              an app: its wish (signed record), and what its node reports beside it
h:apps, h:apps:node:<node>, h:product:<id>:apps  ids of apps by creation (ms); of a node; of a product
h:applog:<id>, h:appsamples:<id>, h:appruns:<id>  an app's newest lines, samples of what it uses, runs that ended
h:backup:<id>           a backup: its wish (signed record), and what has come of it beside it
h:backups, h:backups:due, h:backups:gone         ids by creation; when runs and drills are due, data is deleted (ms)
h:backup:<id>:records, h:backuprecord:<id>:<record>                  records of a backup by their begin (ms), and one
h:events, h:audit, h:audit:head                  what happened
h:tally, h:noted, h:census      how often and how long; what the leader found; the fleet in numbers, for a second
h:recovery, h:rebuild   how recovery points stand; who loads one into this database
h:relay:session:<node>, h:relay:asks:<node>      who answers for the apps of a node, and what waits for it
h:relay:{open,ask,answer}:<id>                   one question to an app: whether it is open, sealed pieces each way
h:ready:<queue>         "<registration> <worker>" of those that listen and found it empty, who may be handed jobs
h:wake, h:queued        channels: a queue that was empty has work, for workers; all that gets into one (how much)
h:out:<id>, h:control:<worker>                   channels: a job's output, a word to a worker
h:offer:<worker>        channel: a job that is handed to it, which its line alone hears
h:applogs:<id>          channel: lines of an app, a JSON array a message
rq:*                    RQ's own layout; it follows, and h:* is the truth
"""

import os
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from settings import Settings
from storage.calls import Call
from storage.keyring import Keyring
from storage.objects import Objects
from storage.passwords import Passwords
from storage.seal import Seal
from storage.wire import Wire

T = TypeVar("T")

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32, lower case: sorts as it counts


class Store:
    """The way to Redis and to the object store, with the clock and the ids that tests may choose."""

    def __init__(self, settings: Settings) -> None:
        if settings.secret_key is None:
            raise ValueError("HOSTLER_SECRET_KEY is not set: 32 bytes or more, the same for all processes.")
        self.settings = settings
        self.wire = Wire(settings.redis_url)
        self.objects = Objects(settings)
        self.seal = Seal(settings.secret_key)
        self.keyring = Keyring(self.call, self.seal)
        self.passwords = Passwords()
        self.cache: dict[str, object] = {}  # what this process may answer from memory for a moment
        self.closing: list[Callable[[], Awaitable[None]]] = []  # what else has to be let go of
        self._newest = [
            0
        ]  # the number of the newest id: one for all who share what this store is made of (carrying.py)

    async def call(self, call: Call[T]) -> T:
        """Carry out one step in Redis. Raises Unavailable, or what the step's rules refuse with."""
        return await self.wire.call(call)

    async def calls(self, *many: Call[Any]) -> list[Any]:
        """Carry out several independent steps in one round trip."""
        return await self.wire.calls(*many)

    def now_ms(self) -> int:
        """Return the time in milliseconds since the epoch. Leases depend on Redis's own clock instead."""
        return time.time_ns() // 1_000_000

    def new_id(self, kind: str) -> str:
        """Return a fresh id such as `job-06f2…`: 45 bits of time, 55 of chance; ids sort by creation.

        Those of one process do so within a millisecond as well, and while the clock goes back; none tells the next one.
        """
        number = (self.now_ms() << 55) | int.from_bytes(os.urandom(7)) >> 1
        if number <= self._newest[0]:
            number = self._newest[0] + 1 + secrets.randbits(40)
        self._newest[0] = number
        return f"{kind}-" + "".join([_ALPHABET[(number >> shift) & 31] for shift in range(95, -5, -5)])

    async def close(self) -> None:
        """Let go of all connections."""
        while self.closing:
            await self.closing.pop()()
        await self.wire.close()
        self.objects.close()
        self.passwords.close()
