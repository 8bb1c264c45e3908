"""Any history of jobs and workers leaves Redis as the rules in plain Python say, after each of its steps."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import hypothesis
import pytest
import redis
from engine import claim, output, reap, register, settle, submitted
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from job_invariants import Image, audited, check, check_rq, check_step, image
from job_model import Job, Model

from settings import Settings
from storage import attempts, fleet, jobs, logs, quarantine, queues, upkeep
from storage.attempts import Claim, Holder, Unregistered
from storage.calls import command, script
from storage.errors import Conflict, HostlerError, Invalid, NotFound, Stale, Unprocessable
from storage.jobs import Backoff, Order
from storage.store import Store

T = TypeVar("T")
WORKERS = {"one": ["linux"], "two": [], "agent": ["gpu", "linux"]}
OUTCOMES = [
    ("completed", "", 0), ("failed", "exit_code", 1), ("failed", "timeout", None), ("failed", "invalid", None),
    ("cancelled", "cancelled", None), ("released", "", None),
]  # fmt: skip
ORDERS = st.fixed_dictionaries(
    {
        "tags": st.sampled_from([[], [], ["linux"], ["gpu", "linux"]]),
        "priority": st.sampled_from(["normal", "normal", "high", "low"]),
        "retries": st.sampled_from([1, 0, 2]),
        "backoff": st.sampled_from([Backoff(0, 2, 1000), Backoff(100, 2, 1000)]),
        "at_most_once": st.sampled_from([False, False, True]),
        "delay_s": st.sampled_from([None, None, None, 100.0]),
        "concurrency_key": st.sampled_from(["db", None]),
        "webhook": st.sampled_from([None, {"url": "https://example.org/"}]),
    }
)
REFUSED = {"stale": Stale, "over": Stale, "unknown": NotFound}


class JobMachine(RuleBasedStateMachine):
    """The job engine on a real server, beside the model."""

    client: redis.Redis
    runner: asyncio.Runner
    store: Store
    steps = 0

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.claims: list[tuple[Holder, Claim]] = []  # all that were ever handed out
        self.registrations = 0
        self.stolen: set[str] = set()  # queue entries that somebody else took
        self.doubled: set[str] = set()
        self.tag_sets: set[str] = set()
        self.keyed: dict[str, tuple[dict[str, Any], str]] = {}
        self.lapsed: list[str] = []
        self.overdue: list[str] = []
        self.discarded: set[str] = set()
        self.client.flushall()
        self.store.cache.clear()
        self.now = Image({})

    # how steps are done

    def does(self, step: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(step)

    def refused(self, step: Coroutine[Any, Any, Any], error: type[HostlerError]) -> None:
        with pytest.raises(error):
            self.does(step)

    def call(self, step: Any) -> Any:
        return self.does(self.store.call(step))

    def pick(self, data: st.DataObject, among: Any, what: str) -> Any:
        return data.draw(st.sampled_from(list(among)), label=what)

    def jobs(self, *states: str) -> list[Job]:
        return [job for job in self.model.jobs.values() if not states or job.state in states]

    def holder(self, name: str) -> Holder:
        return Holder(name, self.model.workers[name].registration)

    # what clients do

    @rule(
        data=st.data(),
        order=ORDERS,
        parents=st.sampled_from([0, 0, 1, 2]),
        idempotency=st.sampled_from([None, None, None, "k1", "k2"]),
    )
    def submit(
        self, data: st.DataObject, order: dict[str, Any], parents: int, idempotency: str | None
    ) -> None:
        known = list(self.model.jobs)
        depends_on = [self.pick(data, known, "parent") for _ in range(parents if len(known) > 1 else 0)]
        self.submits(idempotency, **order, depends_on=depends_on)

    def submits(self, idempotency: str | None = None, /, **order: Any) -> None:
        asked = Order(command="true", **order)
        step = submitted(self.store, key=idempotency, **order)
        if idempotency in self.keyed:
            first, job_id = self.keyed[idempotency]
            if first == order:
                assert self.does(step).id == job_id
            else:
                self.refused(step, Unprocessable)
        elif any(self.model.jobs[each].state in {"failed", "cancelled"} for each in asked.depends_on):
            self.refused(step, Invalid)
        else:
            job_id = self.does(step).id
            self.model.submit(
                "user:u",
                Job(
                    job_id,
                    queues.of_job(asked.priority, asked.tags),
                    key=asked.concurrency_key or "",
                    retries=asked.retries,
                    pause=asked.backoff.delay_s > 0,
                    once=asked.at_most_once,
                    delayed=asked.delay_s is not None,
                    parents=list(dict.fromkeys(asked.depends_on)),
                ),
            )
            self.tag_sets |= {queues.tag_set(asked.tags)} - {""}
            if idempotency:
                self.keyed[idempotency] = (order, job_id)
        self.after()

    @precondition(lambda self: self.keyed)
    @rule(data=st.data())
    def submit_again(self, data: st.DataObject) -> None:
        key = self.pick(data, self.keyed, "idempotency key")
        order, job_id = self.keyed[key]
        assert self.does(submitted(self.store, key=key, **order)).id == job_id
        self.after()

    @precondition(lambda self: self.model.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job_id = self.pick(data, self.model.jobs, "job")
        outcome = self.model.cancel("user:u", job_id)
        step = jobs.cancel(self.store, "user:u", job_id)
        if outcome in {"completed", "failed"}:
            self.refused(step, Conflict)
        else:
            assert self.does(step) == ("running" if outcome == "requested" else "cancelled")
        self.after()

    def out_of_line(self) -> list[str]:
        """Return the finished jobs of which no doubled entry stands in line; such an entry is refused aloud later."""
        lined = {each for ids in self.model.queues.values() for each in ids}
        return [job.id for job in self.jobs() if job.finished and job.id not in lined]

    @precondition(lambda self: self.out_of_line())
    @rule(data=st.data())
    def archive(self, data: st.DataObject) -> None:
        job_id = self.pick(data, self.out_of_line(), "job")
        if self.call(command("ZSCORE", "h:webhooks", job_id)) is not None:
            assert self.call(script("archive", job_id)) == 0  # somebody has still to be told
            self.after()
            self.call(command("ZREM", "h:webhooks", job_id))
        assert self.call(script("archive", job_id)) == 1
        del self.model.jobs[job_id]
        self.after()

    @precondition(lambda self: any(job.reason == "quarantined" for job in self.jobs()))
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        job_id = self.pick(data, [job.id for job in self.jobs() if job.reason == "quarantined"], "job")
        step = quarantine.discard(self.store, "user:u", job_id)
        if job_id in self.discarded:
            self.refused(step, NotFound)
        else:
            self.does(step)
            self.discarded.add(job_id)
            self.model.audit.append(("user:u", "job.discard", job_id))
        self.after()

    # what workers do

    @initialize(data=st.data(), orders=st.lists(ORDERS, min_size=2, max_size=4))
    def opening(self, data: st.DataObject, orders: list[dict[str, Any]]) -> None:
        """Two workers, and some jobs on them."""
        for name in ("one", "agent"):
            self.registers(name, "")
            self.after()
        for order in orders:
            self.submits(**order)
        if any(self.model.queues.values()):
            self.claim(data, 3, 3)

    def registers(self, name: str, proof: str) -> None:
        self.registrations += 1
        registration = f"r{self.registrations}"
        step = register(
            self.store, name, registration, proof=proof, kind="agent" if name == "agent" else "worker"
        )
        if self.model.register(name, registration, proof):
            assert self.does(step) == Holder(name, registration)
        else:
            self.refused(step, Conflict)

    @rule(name=st.sampled_from(list(WORKERS)), proves=st.booleans())
    def register(self, name: str, proves: bool) -> None:
        known = self.model.workers.get(name)
        self.registers(name, known.registration if known and proves else "")
        self.after()

    @precondition(lambda self: self.model.workers)
    @rule(data=st.data(), how=st.sampled_from(["itself", "deleted", "stale"]))
    def depart(self, data: st.DataObject, how: str) -> None:
        name = self.pick(data, self.model.workers, "worker")
        if how == "stale":
            self.refused(self.store.call(fleet.depart(name, "r0", reason="shutdown")), Conflict)
        elif how == "itself":
            self.call(fleet.depart(name, self.model.workers[name].registration, reason="shutdown"))
            self.model.depart(name, forget=False, actor="")
        else:
            self.call(fleet.depart(name, reason="deleted", forget=True, actor="user:u"))
            self.model.depart(name, forget=True, actor="user:u")
        self.after()

    @precondition(lambda self: any(self.model.queues.values()) and self.model.workers)
    @rule(data=st.data(), most=st.integers(1, 3), startable=st.sampled_from([3, 3, 1, 0]))
    def claim(self, data: st.DataObject, most: int, startable: int) -> None:
        name = self.pick(data, self.model.workers, "worker")
        holder, tags = self.holder(name), WORKERS[name]
        expected = self.model.claim(name, tags, self.tag_sets, most, startable)
        lease_s = 0 if name == "agent" else 15
        taken = self.does(claim(self.store, holder, *tags, most=most, startable=startable, lease_s=lease_s))
        assert [(each.job_id, each.attempt) for each in taken] == expected
        for each in taken:
            assert each.read_spec(self.store.seal)["task"] == "command"
            assert each.lines == self.model.jobs[each.job_id].lines
        self.claims += [(holder, each) for each in taken]
        self.after()

    @precondition(lambda self: any(self.model.queues.values()) and self.model.workers)
    @rule(data=st.data())
    def claim_all(self, data: st.DataObject) -> None:
        """Once more, since most of what may happen happens to jobs that run."""
        self.claim(data, 3, 3)

    @rule(name=st.sampled_from(list(WORKERS)))
    def a_registration_of_the_past_claims_and_beats(self, name: str) -> None:
        past = Holder(name, "r0")
        self.refused(claim(self.store, past), Unregistered)
        self.refused(
            self.store.call(attempts.beat(past, [], lease_s=15, rq_ttl_s=0, status={})), Unregistered
        )
        self.refused(self.store.call(attempts.hold(past, lease_s=15)), Unregistered)
        self.after()

    @precondition(lambda self: self.model.workers)
    @rule(data=st.data(), by_heart=st.booleans())
    def beat(self, data: st.DataObject, by_heart: bool) -> None:
        """A worker renews what it believes to hold: what it does hold, or all that it ever claimed."""
        name = self.pick(data, self.model.workers, "worker")
        worker = self.model.workers[name]
        held = [(each, self.model.jobs[each].attempt) for each in worker.held]
        if by_heart:
            held = [(each.job_id, each.attempt) for holder, each in self.claims if holder.worker == name]
        step = attempts.beat(self.holder(name), held, lease_s=15, rq_ttl_s=0, status={"running": len(held)})
        beaten = self.call(step)
        kept = [each for each, attempt in held if self.model.standing(each, name, attempt) == "ok"]
        assert beaten.lost == [each for each, n in held if self.model.standing(each, name, n) != "ok"]
        assert beaten.cancel == [each for each in kept if self.model.jobs[each].cancel]
        self.renewed(name, kept)
        worker.online = True
        self.after()

    @precondition(lambda self: "agent" in self.model.workers)
    @rule(beats=st.booleans())
    def agent_calls(self, beats: bool) -> None:
        agent = self.model.workers["agent"]
        heartbeat = {"status": "online"} if beats else None
        held = self.call(attempts.hold(self.holder("agent"), lease_s=15, heartbeat=heartbeat))
        agent.beats = agent.beats or beats
        assert self.client.hexists("h:worker:agent", "beats") == agent.beats
        assert [job_id for job_id, _ in held.held] == agent.held
        assert held.cancel == [each for each in agent.held if self.model.jobs[each].cancel]
        self.renewed("agent", agent.held if agent.beats else [])
        agent.online = True
        self.after()

    def renewed(self, name: str, kept: list[str]) -> None:
        worker = self.model.workers[name]
        worker.heard = worker.listed = worker.listed_heard = True
        for each in kept:
            self.model.jobs[each].lapsed = False
        self.lapsed = [each for each in self.lapsed if each not in kept]

    # what attempts do, also those that are over

    def some_claim(self, data: st.DataObject) -> tuple[Holder, Claim, str]:
        """One of the claims, most likely one that still counts, by its number or without."""
        current, outdated = [], []
        for holder, each in self.claims:
            standing = self.model.standing(each.job_id, holder.worker, None)
            if standing == "ok":  # the worker holds the job, by this claim or by a later one
                this = self.model.standing(each.job_id, holder.worker, each.attempt)
                (current if this == "ok" else outdated).append((holder, each))
        which = data.draw(st.integers(0, 4), label="which")
        among = self.claims if which == 0 else outdated if which == 1 else current
        among = among or self.claims
        holder, claimed = self.pick(data, among, "claim")
        return holder, claimed, self.model.standing(claimed.job_id, holder.worker, claimed.attempt)

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        holder, claimed, _ = self.some_claim(data)
        begun = self.model.begin(claimed.job_id, holder.worker, claimed.attempt)
        assert self.call(attempts.begin(holder, claimed.job_id, claimed.attempt)) is begun
        self.after()

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), lines=st.integers(1, 3), numbered=st.sampled_from(["next", "no", "again", "gap"]))
    def say(self, data: st.DataObject, lines: int, numbered: str) -> None:
        holder, claimed, standing = self.some_claim(data)
        job = self.model.jobs.get(claimed.job_id)
        known = job.lines if job else 0
        first = {"next": known, "no": None, "again": max(0, known - 1), "gap": known + 5}[numbered]
        step = output(self.store, holder, claimed, b"line\n" * lines, first_line=first)
        if standing != "ok" or job is None:
            self.refused(step, REFUSED[standing])
        else:
            if first is None or first >= known:
                job.lines = (known if first is None else first) + lines
                job.pieces += 1
            answer = self.does(step)
            assert (answer.next_line, answer.full, answer.cancel) == (job.lines, False, job.cancel)
        self.after()

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), percent=st.integers(0, 100), named=st.booleans())
    def progress_and_attach(self, data: st.DataObject, percent: int, named: bool) -> None:
        holder, claimed, standing = self.some_claim(data)
        attempt = claimed.attempt if named else None
        standing = self.model.standing(claimed.job_id, holder.worker, attempt)
        for step in (
            attempts.progress(holder, claimed.job_id, attempt, percent),
            attempts.attach(holder, claimed.job_id, attempt, "artifacts", f"{percent}.txt", {"size": 1}),
        ):
            if standing == "ok":
                self.call(step)
            else:
                self.refused(self.store.call(step), REFUSED[standing])
        if standing == "ok":
            self.model.jobs[claimed.job_id].progress = str(percent)
            self.model.jobs[claimed.job_id].artifacts.add(f"{percent}.txt")
        self.after()

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), outcome=st.sampled_from(OUTCOMES), named=st.sampled_from([True, True, False]),
          times=st.integers(1, 2))  # fmt: skip
    def settle(
        self, data: st.DataObject, outcome: tuple[str, str, int | None], named: bool, times: int
    ) -> None:
        holder, claimed, _ = self.some_claim(data)
        attempt = claimed.attempt if named else None
        word, reason, exit_code = outcome
        text = "" if exit_code is None else str(exit_code)
        for _ in range(times):  # said twice, it must count once
            expected = self.model.settle(claimed.job_id, holder.worker, attempt, word, reason, text)
            step = attempts.settle(holder, claimed.job_id, attempt, word, reason, exit_code)
            if expected in REFUSED:
                self.refused(self.store.call(step), REFUSED[expected])
            else:
                assert self.call(step) == expected
            self.after()

    # what time, death and strangers do

    def still_lapsed(self) -> list[str]:
        """Return the jobs whose lease has run out, in that order, without those that somebody has claimed since."""
        return [each for each in self.lapsed if each in self.model.jobs and self.model.jobs[each].lapsed]

    @precondition(lambda self: self.jobs("running"))
    @rule(data=st.data(), at_once=st.booleans())
    def lease_runs_out(self, data: st.DataObject, at_once: bool) -> None:
        job = self.pick(data, self.jobs("running"), "job")
        job.lapsed = True
        self.lapsed = [each for each in self.still_lapsed() if each != job.id] + [job.id]
        self.client.zadd("h:leases", {each: number for number, each in enumerate(self.lapsed, 1)}, xx=True)
        self.after()
        if at_once:
            self.reap(outage=False)

    @precondition(lambda self: self.jobs("running"))
    @rule(data=st.data(), at_once=st.booleans())
    def cancel_is_not_honoured(self, data: st.DataObject, at_once: bool) -> None:
        job = self.pick(data, self.jobs("running"), "job")
        assert self.model.cancel("user:u", job.id) == "requested"
        assert self.does(jobs.cancel(self.store, "user:u", job.id)) == "running"
        self.overdue = [each for each in self.overdue if each != job.id] + [job.id]
        self.client.zadd("h:cancels", {each: number for number, each in enumerate(self.overdue, 1)}, xx=True)
        self.after()
        if at_once:
            self.reap(outage=False)

    @precondition(lambda self: self.model.workers)
    @rule(data=st.data())
    def worker_falls_silent(self, data: st.DataObject) -> None:
        name = self.pick(data, self.model.workers, "worker")
        worker = self.model.workers[name]
        worker.heard = worker.listed_heard = False
        self.client.hset(f"h:worker:{name}", "seen", 1)
        self.client.zadd("h:workers:seen", {name: 1}, xx=True)
        self.after()

    @rule(outage=st.sampled_from([False, False, False, True]))
    def reap(self, outage: bool) -> None:
        seconds, _ = self.client.time()
        self.client.set("h:reaper:last", 1 if outage else seconds * 1000)
        hold_ms, *found = self.does(reap(self.store))
        if outage:
            assert hold_ms > 0
            assert found == [[], [], []]
            self.client.delete("h:reaper:hold")
        else:
            lost, ended, offline = self.model.reap(self.still_lapsed(), self.overdue)
            assert hold_ms == 0
            assert [[each.decode() for each in part] for part in found[:2]] == [lost, ended]
            assert sorted(each.decode() for each in found[2]) == sorted(offline)
            self.lapsed, self.overdue = [], []
        self.after()

    @precondition(lambda self: any(job.wait in {"delay", "backoff"} for job in self.jobs()))
    @rule(data=st.data(), most=st.integers(1, 3))
    def promote(self, data: st.DataObject, most: int) -> None:
        waiting = [job for job in self.jobs() if job.wait in {"delay", "backoff"}]
        due = data.draw(st.permutations(waiting), label="due")[:most]
        self.client.zadd("h:delayed", {job.id: number for number, job in enumerate(due, 1)})
        promoted, _ = self.call(upkeep.promote())
        assert promoted == len(due)
        for job in due:
            self.model.push(job)
        self.after()

    @precondition(lambda self: any(self.model.queues.values()))
    @rule(data=st.data(), stock_rq=st.booleans())
    def entry_is_taken_out(self, data: st.DataObject, stock_rq: bool) -> None:
        """Somebody deletes an entry, or a stock RQ worker takes it, cannot run it, and calls it failed."""
        queue = self.pick(data, [name for name, ids in self.model.queues.items() if ids], "queue")
        job_id = self.pick(data, self.model.queues[queue], "entry")
        self.client.lrem(f"rq:queue:{queue}", 0, job_id)
        self.model.queues[queue] = [each for each in self.model.queues[queue] if each != job_id]
        job = self.model.jobs.get(job_id)
        if job and job.state == "queued" and not job.wait:
            if stock_rq:
                self.client.hset(f"rq:job:{job_id}", "status", "failed")
                self.client.zadd(f"rq:failed:{queue}", {job_id: 1e12})
            self.stolen.add(job_id)
        self.after()

    @precondition(lambda self: any(self.model.queues.values()))
    @rule(data=st.data())
    def entry_is_doubled(self, data: st.DataObject) -> None:
        queue = self.pick(data, [name for name, ids in self.model.queues.items() if ids], "queue")
        job_id = self.pick(data, self.model.queues[queue], "entry")
        self.client.rpush(f"rq:queue:{queue}", job_id)
        self.model.queues[queue].append(job_id)
        self.doubled.add(job_id)
        self.after()

    @rule(thorough=st.booleans())
    def restore(self, thorough: bool) -> None:
        ready = [job.id for job in self.jobs("queued") if not job.wait]
        entries = [each for ids in self.model.queues.values() for each in ids]
        restored = self.does(upkeep.restore(self.store, thorough=thorough))
        missing = set(ready) - set(entries) if thorough or len(ready) != len(entries) else set()
        assert set(restored) == missing
        for each in restored:
            self.model.push(self.model.jobs[each], front=True)
        self.stolen -= missing
        self.after()

    # what must be so after each step

    def after(self) -> None:
        type(self).steps += 1
        before, self.now = self.now, image(self.client)
        check(self.now, missing=self.stolen, doubled=self.doubled, discarded=self.discarded)
        check_step(before, self.now)
        assert {job_id: self._seen(row) for job_id, row in self.now.jobs.items()} == {
            job.id: self._wanted(job) for job in self.jobs()
        }
        for job in self.jobs():
            # a short log is in the record once its job has ended
            packed = self.now.jobs[job.id].get("log", "").encode()
            kept = len(self.now.keys.get(f"h:log:{job.id}", [])) + len(list(logs.unpacked(packed)))
            assert kept == job.pieces
            assert set(self.now.keys.get(f"h:artifacts:{job.id}", {})) == job.artifacts
            assert not job.once or job.starts <= 1, f"{job.id} may start once, and started {job.starts} times"
        for name in {*self.model.queues, *dict(self.now.named("rq:queue:"))}:
            self._check_order(name)
        found = {name: (row["registration"], row["status"]) for name, row in self.now.named("h:worker:")}
        assert found == {
            name: (each.registration, "online" if each.online else "offline")
            for name, each in self.model.workers.items()
        }
        assert audited(self.now) == self.model.audit
        self.model.moved.clear()

    @staticmethod
    def _seen(row: dict[str, str]) -> tuple[Any, ...]:
        return (
            row["state"], row.get("wait", ""), int(row["attempt"]), row.get("worker", ""), row.get("ahead", ""),
            int(row.get("failures", 0)), int(row.get("deaths", 0)), bool(row.get("cancel")), row.get("reason", ""),
            row.get("exit", ""), row.get("progress", ""), int(row.get("lines", 0)),
        )  # fmt: skip

    @staticmethod
    def _wanted(job: Job) -> tuple[Any, ...]:
        return (
            job.state, job.wait, job.attempt, job.worker, "1" if job.ahead else "", job.failures, job.deaths,
            job.cancel, job.reason, job.exit, job.progress, job.lines,
        )  # fmt: skip

    def _check_order(self, name: str) -> None:
        """What one step put into a queue may stand in any order, as sets have none; everything else keeps its place."""
        found, expected, moved = (
            self.now.keys.get(f"rq:queue:{name}", []),
            self.model.queues[name],
            self.model.moved,
        )
        assert sorted(found) == sorted(expected)
        still = [each for each in expected if each not in moved]
        assert [each for each in found if each not in moved] == still
        assert len(moved) > 1 or found == expected
        self.model.queues[name] = list(found)

    def teardown(self) -> None:
        """From anywhere, a scheduler and a worker bring every job to its end, and nothing stays behind."""
        check_rq(self.client, self.now, missing=self.stolen)
        holder = self.does(register(self.store, "last", "r", silent_s=30))
        for _ in range(4 + 4 * len(self.model.jobs)):
            for index in ("h:leases", "h:delayed"):
                for each in self.client.zrange(index, 0, -1):
                    self.client.zadd(index, {each: 1})
            self.client.set("h:reaper:last", self.client.time()[0] * 1000)
            self.does(reap(self.store))
            self.call(upkeep.promote())
            self.does(upkeep.restore(self.store, thorough=True))
            for each in self.does(claim(self.store, holder, "gpu", "linux", most=100)):
                self.does(settle(self.store, holder, each))
            last = image(self.client)
            check(last, missing=self.stolen, doubled=self.doubled, discarded=self.discarded)
            if all(job["state"] in {"completed", "failed", "cancelled"} for job in last.jobs.values()):
                break
        else:
            stuck = {
                job_id: job for job_id, job in last.jobs.items() if job["state"] in {"queued", "running"}
            }
            pytest.fail(f"never end: {stuck}")
        check_rq(self.client, last, missing=self.stolen)
        for prefix in (
            "h:leases",
            "h:delayed",
            "h:parked",
            "h:proc:",
            "h:key:",
            "h:needs:",
            "h:children:",
            "h:cancels",
        ):
            assert not dict(last.named(prefix)), f"{prefix} outlives the jobs"


@pytest.mark.proves("F62")
def test_jobs_follow_their_rules_whatever_happens(
    settings: Settings, redis_client: redis.Redis, search: hypothesis.settings, evidence: list[str]
) -> None:
    with asyncio.Runner() as runner:

        async def opened() -> Store:
            return Store(settings)

        store = runner.run(opened())
        machine = type("Machine", (JobMachine,), {"client": redis_client, "runner": runner, "store": store})
        try:
            run_state_machine_as_test(machine, settings=search)
        finally:
            runner.run(store.close())
    evidence.append(f"{machine.steps} steps against the model")
