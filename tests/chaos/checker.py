"""The one checker: holds what clients were told, what commands did and what is recorded against the invariants I1-I12.

It knows nothing of Hostler's code. What it is given is in `Findings`; it answers a sentence for each violation, which
begins with the invariant's number (docs/guarantees.md lists them).
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

TERMINAL = {"completed", "failed", "cancelled"}
#: A refusal while something is away comes within this, with the API's own deadline of 4 s and some air.
PROMPT_S = 6.0
#: How many of a job's attempts may die with their worker.
MOST_DEATHS = 3
_FAILURES = {"exit_code", "timeout"}


@dataclass(frozen=True)
class Call:
    """One request of a client: `outcome` is ok (2xx), fail (4xx: it has not happened) or unknown."""

    action: str
    began_s: float
    ended_s: float
    outcome: str
    status: int
    job_id: str | None = None
    key: str | None = None
    order: dict[str, Any] = field(default_factory=dict)
    answer: dict[str, Any] = field(default_factory=dict)
    retry_after: str | None = None
    text: str = ""


@dataclass(frozen=True)
class Effect:
    """One line that a command appended to the shared log: which attempt of which job started or ended."""

    job_id: str
    attempt: int
    pid: int
    word: str


@dataclass
class Findings:
    """What is known in the end. Jobs in `overlapping` ran while their worker was frozen or cut off."""

    calls: list[Call]
    effects: list[Effect]
    jobs: dict[str, dict[str, Any] | None]
    events: list[dict[str, str]]
    audit: list[tuple[str, str, str]] = field(default_factory=list)
    orphans: set[str] = field(default_factory=set)
    leftovers: list[str] = field(default_factory=list)
    logs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    objects: list[tuple[str, str, str]] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    growth: list[tuple[str, float, float]] = field(default_factory=list)
    overlapping: set[str] = field(default_factory=set)

    @property
    def accepted(self) -> dict[str, Call]:
        """Return the first call by which each acknowledged job was accepted."""
        found: dict[str, Call] = {}
        for call in self.calls:
            if call.action == "submit" and call.outcome == "ok" and call.job_id:
                found.setdefault(call.job_id, call)
        return found

    def of(self, job_id: str) -> list[dict[str, str]]:
        """Return the events of a job, in their order."""
        return [event for event in self.events if event.get("id") == job_id]


def violations(found: Findings) -> list[str]:
    """Return every violation, a sentence each."""
    return [sentence for check in CHECKS for sentence in check(found)]


def all_end(found: Findings) -> Iterator[str]:
    """I1: every acknowledged job reaches one terminal state."""
    for job_id in found.accepted:
        job = found.jobs.get(job_id)
        if job is None:
            yield f"I1 {job_id} was acknowledged and is unknown."
        elif job["status"] not in TERMINAL:
            yield f"I1 {job_id} has not ended: {job['status']}, {job.get('wait')}."


def transitions_are_legal(found: Findings) -> Iterator[str]:
    """I2: queued -> running -> queued … -> one terminal state that never changes; attempt numbers rise."""
    for job_id in found.accepted:
        state, attempt = "", 0
        for event in found.of(job_id):
            name, number = event["e"], int(event.get("a") or 0)
            if state in TERMINAL and name in {"job.queued", "job.started", "job.completed"}:
                yield f"I2 {job_id} was {state} and then came {name}."
            elif name == "job.started":
                if state != "queued" or number <= attempt:
                    yield f"I2 {job_id} started attempt {number} from {state or 'nothing'} after {attempt}."
                state, attempt = "running", number
            elif name == "job.queued":
                if state == "queued":
                    yield f"I2 {job_id} was queued twice."
                state = "queued"
            elif name == "job.completed":
                if event["state"] == "completed" and state != "running":
                    yield f"I2 {job_id} completed without running."
                state = event["state"]
        job = found.jobs.get(job_id)
        if job is not None and state and job["status"] != state:
            yield f"I2 {job_id} is {job['status']}, but its last event says {state}."


def ends_are_final(found: Findings) -> Iterator[str]:
    """I2, as clients saw it: a job that was seen to have ended is never seen otherwise."""
    seen: dict[str, str] = {}
    for call in found.calls:
        state = str(call.answer.get("status", "")) if call.action == "status" and call.outcome == "ok" else ""
        if not call.job_id or not state:
            continue
        if seen.get(call.job_id) in TERMINAL and seen[call.job_id] != state:
            yield f"I2 {call.job_id} was seen {seen[call.job_id]} and later {state}."
        seen[call.job_id] = state


def budgets_hold(found: Findings) -> Iterator[str]:
    """I3: failures are retried `retries` times, deaths at most three; an attempt starts once, a shy job starts once."""
    starts: dict[str, list[int]] = defaultdict(list)
    ends: dict[str, list[int]] = defaultdict(list)
    for effect in found.effects:
        (starts if effect.word == "start" else ends)[effect.job_id].append(effect.attempt)
    for job_id, call in found.accepted.items():
        events, begun = found.of(job_id), starts[job_id]
        why = [event.get("why", "") for event in events if event["e"] == "job.queued"]
        failures, deaths = sum(each in _FAILURES for each in why), why.count("worker lost")
        if failures > int(call.order.get("retries", 0)):
            yield f"I3 {job_id} was retried {failures} times."
        if deaths >= MOST_DEATHS:
            yield f"I3 {job_id} was put back after {deaths} deaths."
        if len(begun) != len(set(begun)):
            yield f"I3 {job_id} started one attempt twice: {begun}."
        known = {int(event["a"]) for event in events if event["e"] == "job.started"}
        if events and not set(begun) <= known:
            yield f"I3 {job_id} started {sorted(set(begun) - known)} without a claim."
        if call.order.get("atMostOnce") and len(begun) > 1:
            yield f"I3 {job_id} may start once and started {len(begun)} times."
        job = found.jobs.get(job_id)
        logged = call.order.get("_effects", True)
        if job and logged and job["status"] == "completed" and int(job["attempt"]) not in ends[job_id]:
            yield f"I3 {job_id} completed attempt {job['attempt']}, whose command never ended."


def executions_do_not_overlap(found: Findings) -> Iterator[str]:
    """I4: attempts of one job, and jobs of one concurrency key, run one after the other."""
    keys = {
        job_id: str(call.order.get("concurrencyKey") or job_id) for job_id, call in found.accepted.items()
    }
    inside: dict[str, Effect] = {}
    for effect in found.effects:
        if effect.job_id not in keys or effect.job_id in found.overlapping:
            continue
        before = inside.get(keys[effect.job_id])
        if effect.word == "start":
            inside[keys[effect.job_id]] = effect
        elif before is not None and (before.job_id, before.attempt) != (effect.job_id, effect.attempt):
            yield (
                f"I4 {effect.job_id} attempt {effect.attempt} ended after "
                f"{before.job_id} attempt {before.attempt} had started."
            )


def nothing_is_left(found: Findings) -> Iterator[str]:
    """I5: no process and no directory of a job that has ended."""
    for job_id in sorted(found.orphans):
        yield f"I5 A process of {job_id} is left."
    for path in found.leftovers:
        yield f"I5 {path} is left."


def objects_are_whole(found: Findings) -> Iterator[str]:
    """I6: whatever is listed can be had, whole."""
    for name, listed, got in found.objects:
        if listed != got:
            yield f"I6 {name} is listed as {listed} and is {got}."


def logs_are_numbered(found: Findings) -> Iterator[str]:
    """I7: lines are contiguous, or a gap says which are missing."""
    for job_id, pages in found.logs.items():
        expected = 1
        for page in pages:
            if gap := page.get("gap"):
                expected = max(expected, int(gap["to"]) + 1)
            for line in page["lines"]:
                if line["seq"] != expected:
                    yield f"I7 {job_id} has line {line['seq']} where {expected} is due, and states no gap."
                expected = line["seq"] + 1


def keys_are_honoured(found: Findings) -> Iterator[str]:
    """I8: one Idempotency-Key is one job and one answer."""
    answers: dict[str, dict[str, Any]] = {}
    for call in found.calls:
        if call.action == "submit" and call.outcome == "ok" and call.key:
            first = answers.setdefault(call.key, call.answer)
            if first != call.answer:
                yield f"I8 Key {call.key} was answered {first} and {call.answer}."
    jobs = [answer.get("jobId") for answer in answers.values()]
    if len(jobs) != len(set(jobs)):
        yield "I8 Two keys were answered the same job."
    asked = {call.key for call in found.calls if call.action == "submit"}
    if asked == set(answers) and not any(call.action == "schedule" for call in found.calls):
        made = {event["id"] for event in found.events if event["e"] == "job.queued" and "by" in event}
        for job_id in sorted(made - set(found.accepted)):
            yield f"I8 {job_id} was made by a submit whose repetition was answered another job."


def refusals_are_prompt(found: Findings) -> Iterator[str]:
    """I9: what cannot be done now is refused soon, as 503 with Retry-After, and never as 500."""
    for call in found.calls:
        took_s = call.ended_s - call.began_s
        if call.action != "wait" and took_s > PROMPT_S:
            yield f"I9 {call.action} was answered {call.status} after {took_s:.1f} s."
        if call.status >= 500 and call.status not in {503, 507}:
            yield f"I9 {call.action} was answered {call.status}: {call.text[:120]}"
        if call.status == 503 and not call.retry_after:
            yield f"I9 {call.action} was answered 503 without Retry-After."
        if call.status >= 400 and "Traceback" in call.text:
            yield f"I9 {call.action} was answered with a trace."


def secrets_stay_secret(found: Findings) -> Iterator[str]:
    """I10: no secret in a log, an event, the audit log or a command line."""
    for where in found.leaks:
        yield f"I10 {where} holds a secret."


def nothing_grows(found: Findings) -> Iterator[str]:
    """I11: what was used before is used after, give or take 10 % and a handful."""
    for what, before, after in found.growth:
        if after > before * 1.1 + 8:
            yield f"I11 {what}: {before:.0f} before, {after:.0f} after."


def changes_are_audited(found: Findings) -> Iterator[str]:
    """I12: one audit entry for each accepted change."""
    if not found.audit:
        return
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for _, action, subject in found.audit:
        counts[action, subject] += 1
    for job_id in found.accepted:
        if counts["job.submit", job_id] != 1:
            yield f"I12 {job_id} has {counts['job.submit', job_id]} entries of its submit."
    for job_id in {call.job_id for call in found.calls if call.action == "cancel" and call.outcome == "ok"}:
        if counts["job.cancel", str(job_id)] > 1:
            yield f"I12 {job_id} has {counts['job.cancel', str(job_id)]} entries of its cancel."


CHECKS = (
    all_end, transitions_are_legal, ends_are_final, budgets_hold, executions_do_not_overlap, nothing_is_left,
    objects_are_whole, logs_are_numbered, keys_are_honoured, refusals_are_prompt, secrets_stay_secret, nothing_grows,
    changes_are_audited,
)  # fmt: skip
