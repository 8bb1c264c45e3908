"""Whatever order two or three actors' steps come in, no rule breaks between any two of them, and every job ends."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import combinations, islice
from typing import Any

import pytest
import redis
from engine import claim, output, reap, register, settle, submit
from job_invariants import Image, check, check_step, image

from settings import Settings
from storage import attempts, fleet, jobs
from storage.attempts import Claim, Holder, Unregistered
from storage.errors import Conflict, Stale
from storage.jobs import Backoff
from storage.store import Store


@dataclass
class Scene:
    """One job, or three that share a key, with two workers; what each actor remembers between its steps."""

    store: Store
    client: redis.Redis
    job_id: str = ""  # the one that a client cancels
    holders: dict[str, Holder] = field(default_factory=dict)
    claims: dict[str, list[Claim]] = field(default_factory=dict)

    async def claims_as(self, actor: str) -> None:
        with suppress(Unregistered):
            self.claims[actor] = await claim(self.store, self.holders[actor], most=2)

    async def each(self, actor: str, step: Callable[[Holder, Claim], Awaitable[Any]]) -> None:
        """Do a step for all that an actor claimed; it counts for no attempt but its own, and may be refused."""
        for claimed in self.claims.get(actor, []):
            record = f"h:job:{claimed.job_id}"
            before = self.client.hgetall(record)
            with suppress(Stale):
                await step(self.holders[actor], claimed)
            if before[b"attempt"] != str(claimed.attempt).encode():
                assert self.client.hgetall(record) == before, (
                    f"attempt {claimed.attempt} counted for {before}"
                )

    def time_passes(self, *indexes: str) -> None:
        """Every lease has run out, or no cancel was honoured in time."""
        for index in indexes:
            if waiting := self.client.zrange(index, 0, -1):
                self.client.zadd(index, dict.fromkeys(waiting, 1))
        self.client.set("h:reaper:last", self.client.time()[0] * 1000)


Step = Callable[[Scene], Awaitable[None]]


def _claim(actor: str) -> Step:
    return lambda scene: scene.claims_as(actor)


def _settle(actor: str, outcome: str) -> Step:
    return lambda scene: scene.each(
        actor, lambda holder, claimed: settle(scene.store, holder, claimed, outcome)
    )


def _output(actor: str) -> Step:
    return lambda scene: scene.each(
        actor, lambda holder, claimed: output(scene.store, holder, claimed, b"line\n", first_line=0)
    )


def _beat(actor: str) -> Step:
    async def step(scene: Scene) -> None:
        held = [(each.job_id, each.attempt) for each in scene.claims.get(actor, [])]
        status = {"running": len(held)}
        with suppress(Unregistered):
            await scene.store.call(
                attempts.beat(scene.holders[actor], held, lease_s=15, rq_ttl_s=0, status=status)
            )

    return step


async def _reap(scene: Scene) -> None:
    scene.time_passes("h:leases", "h:cancels")
    await reap(scene.store)


async def _reap_cancels(scene: Scene) -> None:
    """The worker renews its lease, and does not do what it is told."""
    scene.time_passes("h:cancels")
    await reap(scene.store)


async def _cancel(scene: Scene) -> None:
    with suppress(Conflict):  # it has ended
        await jobs.cancel(scene.store, "user:u", scene.job_id)


async def _register_anew(scene: Scene) -> None:
    """The first worker starts again under its name; its old process may still be there, and does not know."""
    scene.holders["successor"] = await register(scene.store, "one", "r2", proof="r1")


async def _depart(scene: Scene) -> None:
    await scene.store.call(fleet.depart("one", reason="deleted"))


#: Who does what, in the order in which each does it. A worker's refused steps are steps too.
ACTORS: dict[str, list[Step]] = {
    "worker": [_claim("one"), _beat("one"), _output("one"), _settle("one", "completed")],
    "failing worker": [_claim("two"), _settle("two", "failed")],
    "draining worker": [_claim("two"), _settle("two", "released")],
    "reaper": [_reap],
    "impatient reaper": [_reap_cancels, _reap],
    "client": [_cancel],
    "client twice": [_cancel, _cancel],
    "successor": [_register_anew, _claim("successor"), _settle("successor", "completed")],
    "operator": [_depart],
}
#: Together in one story they would be one and the same.
SAME = [
    {"failing worker", "draining worker"}, {"reaper", "impatient reaper"}, {"client", "client twice"},
    {"successor", "operator"},
]  # fmt: skip
ORDERS_OF: dict[str, dict[str, Any]] = {
    "a job": {},
    "a job that is retried": {"retries": 1, "backoff": Backoff(0, 1, 1)},
    "a job that may run once": {"at_most_once": True, "retries": 1},
    "three jobs with one key": {"concurrency_key": "db"},
}


#: Of three actors' 10,762 orders around each job the short run plays one in so many.
EVERY = 211


def interleavings(lengths: dict[str, int]) -> Iterator[tuple[str, ...]]:
    """Yield every order of the actors' steps, neighbours sharing beginnings."""
    if not any(lengths.values()):
        yield ()
    for actor, left in lengths.items():
        if left:
            for rest in interleavings({**lengths, actor: left - 1}):
                yield (actor, *rest)


def casts(size: int) -> list[tuple[str, ...]]:
    """Return every choice of so many actors in which at least one claims."""
    return [
        cast
        for cast in combinations(ACTORS, size)
        if not any(len(same & set(cast)) > 1 for same in SAME)
        and any("worker" in actor or actor == "successor" for actor in cast)
    ]


async def _opening(store: Store, client: redis.Redis, order: dict[str, Any]) -> Scene:
    client.flushall()
    scene = Scene(store, client)
    for name in ("one", "two"):
        scene.holders[name] = await register(store, name)
    ids = [await submit(store, **order) for _ in range(3 if "concurrency_key" in order else 1)]
    scene.job_id = ids[-2:][0]
    return scene


async def _play(scene: Scene, story: tuple[str, ...], checked: int) -> None:
    """Do the steps of a story; the first `checked` have been looked at in the story before it."""
    done = dict.fromkeys(story, 0)
    before: Image | None = None
    for number, actor in enumerate(story):
        if number >= checked and before is None:
            before = image(scene.client)
        await ACTORS[actor][done[actor]](scene)
        done[actor] += 1
        if before is not None:
            now = image(scene.client)
            check(now)
            check_step(before, now)
            before = now


async def _closing(scene: Scene) -> None:
    """A scheduler and one more worker bring all to its end."""
    last = await register(scene.store, "last")
    for _ in range(8):
        await _reap(scene)
        for each in await claim(scene.store, last, most=9):
            await settle(scene.store, last, each)
        now = image(scene.client)
        check(now)
        if {job["state"] for job in now.jobs.values()} <= {"completed", "failed", "cancelled"}:
            return
    pytest.fail(f"never ends: {now.jobs}")


async def _play_all(
    settings: Settings, client: redis.Redis, order: dict[str, Any], cast: tuple[str, ...], every: int
) -> int:
    """Play every so manieth order of a cast's steps; answer how many that were."""
    store, played = Store(settings), 0
    previous: tuple[str, ...] = ()
    stories = interleavings({actor: len(ACTORS[actor]) for actor in cast})
    try:
        for story in islice(stories, 0, None, every):
            shared = next(
                (i for i, pair in enumerate(zip(previous, story, strict=False)) if len(set(pair)) > 1), 0
            )
            scene = await _opening(store, client, order)
            try:
                await _play(scene, story, shared)
                await _closing(scene)
            except Exception as error:
                error.add_note(f"in the order {' > '.join(story)}")
                raise
            previous, played = story, played + 1
    finally:
        await store.close()
    return played


@pytest.mark.proves("F63")
@pytest.mark.parametrize("what", list(ORDERS_OF))
async def test_no_order_of_two_actors_steps_breaks_a_rule(
    settings: Settings, redis_client: redis.Redis, what: str, evidence: list[str]
) -> None:
    played = [await _play_all(settings, redis_client, ORDERS_OF[what], cast, 1) for cast in casts(2)]
    evidence.append(f"{sum(played)} orders of two actors around {what}")


@pytest.mark.proves("F63")
@pytest.mark.parametrize("what", list(ORDERS_OF))
async def test_no_order_of_three_actors_steps_breaks_a_rule(
    settings: Settings, redis_client: redis.Redis, what: str, nightly: bool, evidence: list[str]
) -> None:
    every = 1 if nightly else EVERY
    played = [await _play_all(settings, redis_client, ORDERS_OF[what], cast, every) for cast in casts(3)]
    evidence.append(f"{sum(played)} orders of three actors around {what}")
