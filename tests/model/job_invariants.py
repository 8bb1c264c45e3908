"""What must be true of everything Redis holds about jobs, between any two steps, whatever was done in them."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import redis
from rq.job import Job as RqJob
from rq.registry import (
    CanceledJobRegistry,
    DeferredJobRegistry,
    FailedJobRegistry,
    FinishedJobRegistry,
    ScheduledJobRegistry,
)
from rq.serializers import JSONSerializer

TERMINAL = {"completed", "failed", "cancelled"}
LEGAL = {
    "queued": {"queued", "running", *TERMINAL},
    "running": {"queued", "running", *TERMINAL},
    **{each: {each} for each in TERMINAL},
}
#: How RQ's words say where a job is: by its state, or by what it waits for.
RQ_STATUS = {
    "completed": "finished", "failed": "failed", "cancelled": "canceled", "running": "started", "": "queued",
    "delay": "scheduled", "backoff": "scheduled", "schedule": "scheduled", "dependency": "deferred",
    "key": "deferred",
}  # fmt: skip
RQ_REGISTRIES = {
    "finished": FinishedJobRegistry, "failed": FailedJobRegistry, "canceled": CanceledJobRegistry,
    "scheduled": ScheduledJobRegistry, "deferred": DeferredJobRegistry,
}  # fmt: skip
#: The indexes that follow from the records alone: what is under these names and should not be there is found too.
INDEXES = (
    "h:jobs", "h:ended", "h:delayed", "h:leases", "h:cancels", "h:parked", "h:quarantine", "h:webhooks",
    "h:needs:", "h:children:", *(f"rq:{each}:" for each in (*RQ_REGISTRIES, "wip")),
)  # fmt: skip

#: What a record leaves out when there is nothing to say.
LEFT_OUT = {
    **dict.fromkeys(("key", "tags", "hook", "once", "reason", "backoff"), ""),
    **dict.fromkeys(("retries", "failures", "deaths"), "0"),
}

_EVERYTHING = """
local all = {}
for i, key in ipairs(redis.call('KEYS', '*')) do
  local kind, value = redis.call('TYPE', key).ok, nil
  if kind == 'hash' then value = redis.call('HGETALL', key)
  elseif kind == 'zset' then value = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  elseif kind == 'list' then value = redis.call('LRANGE', key, 0, -1)
  elseif kind == 'set' then value = redis.call('SMEMBERS', key)
  elseif kind == 'stream' then value = redis.call('XRANGE', key, '-', '+')
  else value = redis.call('GET', key) end
  all[i] = {key, kind, value}
end
return all
"""


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return [_plain(each) for each in value] if isinstance(value, list) else value


def _by_twos(flat: list[Any]) -> dict[Any, Any]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


@dataclass(frozen=True)
class Image:
    """All that Redis held at one instant."""

    keys: dict[str, Any]

    @property
    def jobs(self) -> dict[str, dict[str, str]]:
        """Return the records by id, with what they leave out."""
        return {job_id: {**LEFT_OUT, **record} for job_id, record in self.named("h:job:")}

    def named(self, prefix: str) -> Iterator[tuple[str, Any]]:
        """Yield what lies under a prefix, by what follows it."""
        return ((key[len(prefix) :], value) for key, value in self.keys.items() if key.startswith(prefix))

    def fields(self, stream: str) -> list[dict[str, str]]:
        """Return the entries of a stream in their order."""
        return [_by_twos(flat) for _, flat in self.keys.get(stream, [])]


def image(client: redis.Redis) -> Image:
    """Return all that Redis holds, read at one instant."""
    keys = {}
    for key, kind, value in _plain(client.eval(_EVERYTHING, 0)):
        if kind == "hash":
            keys[key] = _by_twos(value)
        elif kind == "zset":
            keys[key] = {member: float(score) for member, score in _by_twos(value).items()}
        else:
            keys[key] = set(value) if kind == "set" else value
    return Image(keys)


def check(
    now: Image,
    *,
    missing: Collection[str] = (),
    doubled: Collection[str] = (),
    discarded: Collection[str] = (),
) -> None:
    """Assert all that must hold at any instant.

    `missing` are jobs whose queue entry somebody else took out, `doubled` those that somebody put in once more,
    `discarded` those that were taken out of the quarantine.
    """
    _check_indexes(now, missing, discarded)
    _check_queues(now, missing, doubled)
    _check_keys(now)
    _check_holders(now)
    _check_budgets(now)
    _check_events(now)
    audited(now)


def check_step(before: Image, now: Image) -> None:
    """Assert what must hold between two instants with one step between them."""
    jobs = now.jobs
    for job_id, was in before.jobs.items():
        if job_id not in jobs:
            assert was["state"] in TERMINAL, f"{job_id} was {was['state']} and is gone"
            continue
        job = jobs[job_id]
        assert job["state"] in LEGAL[was["state"]], f"{job_id} went from {was['state']} to {job['state']}"
        assert int(job["attempt"]) - int(was["attempt"]) in {0, 1}, f"{job_id} skipped an attempt"
        if was["state"] in TERMINAL:
            assert job == was, f"{job_id} was changed after its end"
            assert now.keys.get(f"h:log:{job_id}") == before.keys.get(f"h:log:{job_id}")
            assert now.keys.get(f"h:artifacts:{job_id}") == before.keys.get(f"h:artifacts:{job_id}")


def _check_indexes(now: Image, missing: Collection[str], discarded: Collection[str]) -> None:
    expected: defaultdict[str, set[str]] = defaultdict(set)
    jobs = now.jobs
    for job_id, job in jobs.items():
        state, wait, queue = job["state"], job.get("wait", ""), job["queue"]
        names = ["h:jobs", f"h:jobs:{state}"]
        names += [f"h:jobs:tag:{tag}" for tag in job["tags"].split("+") if tag]
        if job.get("worker"):
            names.append(f"h:jobs:worker:{job['worker']}")
        if state in TERMINAL:
            names += ["h:ended", f"rq:{RQ_STATUS[state]}:{queue}"]
            names += ["h:webhooks"] if job["hook"] else []
            names += ["h:quarantine"] if job["reason"] == "quarantined" and job_id not in discarded else []
        elif state == "running":
            names += ["h:leases"] + (["h:cancels"] if job.get("cancel") else [])
            expected[f"rq:wip:{queue}"].add(f"{job_id}:{job['attempt']}")
        elif wait:
            names += ["h:parked", f"rq:{RQ_STATUS[wait]}:{queue}"]
            names += ["h:delayed"] if wait in {"delay", "backoff"} else []
        for name in names:
            expected[name].add(job_id)
        needs = {each for each in json.loads(job["spec"]).get("depends_on", []) if _open(jobs, each)}
        assert state != "queued" or bool(needs) == (wait == "dependency"), f"{job_id} waits wrongly: {job}"
        for each in needs:
            expected[f"h:needs:{job_id}"].add(each)
            expected[f"h:children:{each}"].add(job_id)
        status = RQ_STATUS[wait if state == "queued" else state]
        assert job_id in missing or now.keys[f"rq:job:{job_id}"]["status"] == status, (
            f"{job_id} as RQ sees it"
        )
    # RQ's registries of what somebody else spoiled are put right with the job, not before
    found = {key: set(value) - set(missing) for key, value in now.keys.items() if key.startswith(INDEXES)}
    # of jobs that left Redis the queue of webhooks learns when it looks, and a parent when it ends
    gone = {
        member for key in found if key.startswith(("h:webhooks", "h:children:")) for member in found[key]
    } - set(jobs)
    found = {key: value - gone for key, value in found.items() if key.removeprefix("h:needs:") not in gone}
    wanted = {key: value - set(missing) for key, value in expected.items() if key.startswith(INDEXES)}
    assert {key: value for key, value in found.items() if value} == {k: v for k, v in wanted.items() if v}


def _open(jobs: dict[str, dict[str, str]], job_id: str) -> bool:
    return job_id in jobs and jobs[job_id]["state"] not in TERMINAL


def _check_queues(now: Image, missing: Collection[str], doubled: Collection[str]) -> None:
    entries = {queue: Counter(ids) for queue, ids in now.named("rq:queue:")}
    ready = {job_id: job for job_id, job in now.jobs.items() if job["state"] == "queued" and not job["wait"]}
    for job_id, job in ready.items():
        assert entries.get(job["queue"], {}).get(job_id) or job_id in missing, f"{job_id} is in no queue"
    for queue, counts in entries.items():
        for job_id, count in counts.items():
            if job_id not in doubled:
                assert job_id in ready, f"{job_id} is in {queue}, and does not wait there"
                assert (ready[job_id]["queue"], count) == (queue, 1), f"{job_id} is {count} times in {queue}"


def _check_keys(now: Image) -> None:
    running = {job_id: job for job_id, job in now.jobs.items() if job["state"] == "running" and job["key"]}
    assert {job["key"]: job_id for job_id, job in running.items()} == dict(now.named("h:key:"))
    assert len({job["key"] for job in running.values()}) == len(running), "two jobs hold one key"
    queued = {job_id: job for job_id, job in now.jobs.items() if job["state"] == "queued" and job["key"]}
    waiting = {job_id: job for job_id, job in queued.items() if job["wait"] == "key"}
    lines = dict(now.named("h:keywait:"))
    for job_id, job in waiting.items():
        assert lines.get(job["key"], []).count(job_id) == 1, f"{job_id} does not stand in line for its key"
        goes_on = job["key"] in {each["key"] for each in running.values()} or any(
            each["key"] == job["key"] and not each["wait"] for each in queued.values()
        )
        assert goes_on, f"{job_id} waits for a key that nobody holds and nobody is about to take"


def _check_holders(now: Image) -> None:
    held = {worker: sorted(ids) for worker, ids in now.named("h:proc:")}
    expected: defaultdict[str, list[str]] = defaultdict(list)
    for job_id, job in sorted(now.jobs.items()):
        if job["state"] == "running":
            expected[job["worker"]].append(job_id)
        elif job["state"] == "queued":
            assert not job.get("worker"), f"{job_id} is queued, and its worker's"
    assert held == expected


def _check_budgets(now: Image) -> None:
    for job_id, job in now.jobs.items():
        deaths = int(job["deaths"])
        assert int(job["failures"]) <= int(job["retries"]), f"{job_id} was retried beyond its budget"
        assert deaths <= 3, f"{job_id} killed {deaths} workers"
        assert deaths < 3 or job["reason"] == "quarantined", f"{job_id} killed three workers and goes on"
        assert len(now.keys.get(f"h:deaths:{job_id}", [])) == deaths
        assert not (job["once"] and (deaths or int(job["failures"]))), f"{job_id} may start once, not again"


def _check_events(now: Image) -> None:
    stories: defaultdict[str, list[dict[str, str]]] = defaultdict(list)
    for event in now.fields("h:events"):
        if event["e"].startswith("job."):
            for job_id in event.get("ids", event.get("id", "")).split():
                stories[job_id].append(event)
    jobs = now.jobs
    assert set(jobs) <= set(stories)
    for job_id, story in stories.items():
        state, attempt = chain(story)
        if job_id in jobs:
            assert (state, attempt) == (jobs[job_id]["state"], int(jobs[job_id]["attempt"])), f"{story}"


def chain(story: list[dict[str, str]]) -> tuple[str, int]:
    """Assert that a job's events follow from one another; return the state and the attempt that they lead to."""
    state, attempt = "", 0
    for event in story:
        name, said = event["e"], int(event.get("a", attempt))
        legal = {
            "job.queued": ("by" in event) if state == "" else (state == "running" and said == attempt),
            "job.restored": state == "queued",
            "job.started": state == "queued" and said == attempt + 1,
            "job.progress": state == "running" and said == attempt,
            "job.completed": state in {"queued", "running"} and said == attempt,
        }
        assert legal[name], f"{event} cannot follow {state!r}, attempt {attempt}"
        attempt = said
        if name == "job.completed":
            state = event["state"]
        elif name in {"job.queued", "job.started"}:
            state = "queued" if name == "job.queued" else "running"
    return state, attempt


def audited(now: Image) -> list[tuple[str, str, str]]:
    """Assert that the audit log's chain holds; return its lines as actor, action and subject."""
    head, lines = "", []
    for entry in now.fields("h:audit"):
        head = hashlib.sha1(head.encode() + entry["line"].encode(), usedforsecurity=False).hexdigest()
        assert entry["digest"] == head, f"the chain breaks at {entry['line']}"
        lines.append(json.loads(entry["line"]))
    assert now.keys.get("h:audit:head", "") == head
    assert all(int(one[0]) <= int(other[0]) for one, other in pairwise(lines))
    return [(actor, action, subject) for _, actor, action, subject in lines]


def check_rq(client: redis.Redis, now: Image, *, missing: Collection[str] = ()) -> None:
    """Assert that RQ's own reader sees what the records say."""
    jobs = {job_id: job for job_id, job in now.jobs.items() if job_id not in missing}
    counts: Counter[tuple[str, str]] = Counter()
    for job_id, job in jobs.items():
        read = RqJob.fetch(job_id, connection=client, serializer=JSONSerializer)
        status = RQ_STATUS[job["wait"] if job["state"] == "queued" else job["state"]]
        assert read.get_status(refresh=False).value == status
        assert read.func_name == "workers.tasks.command"
        assert read.args == [job_id]
        counts[status, job["queue"]] += 1
    if missing:
        return
    for name, registry in RQ_REGISTRIES.items():
        for queue in {job["queue"] for job in jobs.values()}:
            ids = registry(queue, connection=client, serializer=JSONSerializer).get_job_ids(cleanup=False)
            assert len(ids) == counts[name, queue], f"RQ's {name} jobs of {queue}: {ids}"
