"""The checker finds what it must find: each invariant is broken once, and only that one is named."""

from dataclasses import replace
from typing import Any

import pytest
from checker import Call, Effect, Findings, violations


def events(*words: str, job_id: str = "job-1") -> list[dict[str, str]]:
    """Return a job's events: q (queued), q:<why>, s<attempt> (started), c:<state> (ended)."""
    found = []
    for word in words:
        name, _, detail = word.partition(":")
        event = {"id": job_id, "e": {"q": "job.queued", "s": "job.started", "c": "job.completed"}[name[0]]}
        event |= {"q": {"why": detail}, "s": {"a": name[1:]}, "c": {"state": detail}}[name[0]]
        found.append(event)
    return found


def submit(job_id: str = "job-1", **order: Any) -> Call:
    answer = {"jobId": job_id}
    return Call(
        "submit", 0.0, 0.1, "ok", 201, job_id=job_id, key=f"key of {job_id}", order=order, answer=answer
    )


def ran(attempt: int = 1, job_id: str = "job-1") -> list[Effect]:
    return [Effect(job_id, attempt, 1, "start"), Effect(job_id, attempt, 1, "end")]


def sound(**changes: Any) -> Findings:
    """Return what a job leaves that ran once and well."""
    found = Findings(
        calls=[submit()], effects=ran(), jobs={"job-1": {"status": "completed", "attempt": 1}},
        events=events("q", "s1", "c:completed"), audit=[("user:u", "job.submit", "job-1")],
        logs={"job-1": [{"lines": [{"seq": 1}, {"seq": 2}], "gap": None}]},
    )  # fmt: skip
    return replace(found, **changes)


def test_what_is_sound_is_not_blamed() -> None:
    assert violations(sound()) == []


FAILED = {"job-1": {"status": "failed", "attempt": 1}}
REFUSED = Call("submit", 0.0, 0.1, "unknown", 503, retry_after="1")


@pytest.mark.parametrize(
    ("invariant", "changes"),
    [
        ("I1", {"jobs": {"job-1": None}}),
        ("I1", {"jobs": {"job-1": {"status": "queued", "attempt": 0}}, "events": events("q"), "effects": []}),
        ("I2", {"events": events("q", "s1", "c:completed", "q:worker lost")}),
        ("I2", {"events": events("q", "s1", "c:completed", "c:failed"), "jobs": FAILED}),
        ("I2", {"events": events("q", "s1", "q:worker lost", "s1", "c:completed")}),
        ("I2", {"events": events("q", "s1", "c:failed")}),
        ("I2", {"events": events("q", "c:completed"), "effects": [],
                "calls": [submit(_effects=False)]}),
        ("I3", {"events": events("q", "s1", "q:exit_code", "s2", "c:completed"), "effects": ran(1) + ran(2),
                "jobs": {"job-1": {"status": "completed", "attempt": 2}}}),
        ("I3", {"effects": ran() + ran()}),
        ("I3", {"effects": ran() + ran(2)}),
        ("I3", {"effects": ran()[:1]}),
        ("I3", {"calls": [submit(atMostOnce=True)], "effects": ran(1) + ran(2),
                "events": events("q", "s1", "q:worker lost", "s2", "c:completed"),
                "jobs": {"job-1": {"status": "completed", "attempt": 2}}}),
        ("I3", {"events": events("q", *(w for n in "123" for w in (f"s{n}", "q:worker lost")), "c:failed"),
                "jobs": FAILED}),
        ("I5", {"orphans": {"job-1"}}),
        ("I5", {"leftovers": ["work/w/job-x"]}),
        ("I6", {"objects": [("a.txt", "1234", "1235")]}),
        ("I7", {"logs": {"job-1": [{"lines": [{"seq": 1}, {"seq": 3}], "gap": None}]}}),
        ("I7", {"logs": {"job-1": [{"lines": [{"seq": 1}, {"seq": 1}], "gap": None}]}}),
        ("I8", {"calls": [submit(), replace(submit(), answer={"jobId": "job-1", "createdAt": "later"})]}),
        ("I8", {"events": [*events("q", "s1", "c:completed"), {"id": "job-2", "e": "job.queued", "by": "user:u"}]}),
        ("I9", {"calls": [submit(), replace(REFUSED, ended_s=9.0)]}),
        ("I9", {"calls": [submit(), replace(REFUSED, retry_after=None)]}),
        ("I9", {"calls": [submit(), replace(REFUSED, status=500)]}),
        ("I10", {"leaks": ["web.log"]}),
        ("I11", {"growth": [("files open", 40, 80)]}),
        ("I12", {"audit": [("user:u", "job.submit", "job-2")]}),
        ("I12", {"audit": [("user:u", "job.submit", "job-1")] * 2}),
    ],
)  # fmt: skip
def test_what_is_broken_is_found(invariant: str, changes: dict[str, Any]) -> None:
    found = violations(sound(**changes))
    assert found
    assert {sentence.partition(" ")[0] for sentence in found} == {invariant}


def test_attempts_that_overlap_are_found_unless_their_worker_was_frozen() -> None:
    first, second = ran(1), ran(2)
    interleaved = [first[0], second[0], first[1], second[1]]
    found = sound(
        effects=interleaved, events=events("q", "s1", "q:worker lost", "s2", "c:completed"),
        jobs={"job-1": {"status": "completed", "attempt": 2}},
    )  # fmt: skip
    assert [sentence.partition(" ")[0] for sentence in violations(found)] == ["I4"]
    assert violations(replace(found, overlapping={"job-1"})) == []


def test_two_jobs_of_one_key_that_overlap_are_found() -> None:
    one, two = ran(1, "job-1"), ran(1, "job-2")
    found = sound(
        calls=[submit("job-1", concurrencyKey="k"), submit("job-2", concurrencyKey="k")],
        effects=[one[0], two[0], one[1], two[1]],
        events=events("q", "s1", "c:completed") + events("q", "s1", "c:completed", job_id="job-2"),
        jobs={name: {"status": "completed", "attempt": 1} for name in ("job-1", "job-2")},
        audit=[],
    )
    assert [sentence.partition(" ")[0] for sentence in violations(found)] == ["I4"]


def test_a_terminal_state_that_a_client_saw_change_is_found() -> None:
    seen = [
        Call("status", 0, 0.1, "ok", 200, job_id="job-1", answer={"status": state})
        for state in ("failed", "running")
    ]
    found = violations(sound(calls=[submit(), *seen]))
    assert [sentence.partition(" ")[0] for sentence in found] == ["I2"]


def test_a_stated_gap_is_no_violation() -> None:
    pages = [{"lines": [{"seq": 5}, {"seq": 6}], "gap": {"from": 1, "to": 4}}]
    assert violations(sound(logs={"job-1": pages})) == []
