"""The rules of jobs in plain Python: what each step should answer, and what should be so after it."""

from collections import defaultdict
from dataclasses import dataclass, field

from storage import queues

TERMINAL = {"completed", "failed", "cancelled"}
MAX_DEATHS = 3


@dataclass
class Job:
    """A job as the rules see it."""

    id: str
    queue: str
    key: str = ""
    retries: int = 0
    pause: bool = False  # whether a retry waits for its backoff
    once: bool = False
    delayed: bool = False
    parents: list[str] = field(default_factory=list)
    state: str = "queued"
    wait: str = ""
    attempt: int = 0
    worker: str = ""
    ahead: bool = False
    failures: int = 0
    deaths: int = 0
    cancel: bool = False
    reason: str = ""
    exit: str = ""
    progress: str = ""
    lines: int = 0
    pieces: int = 0  # of output
    artifacts: set[str] = field(default_factory=set)
    settled: tuple[str, int] | None = None  # the attempt that was ended last and did not end the job
    lapsed: bool = False  # its lease has run out
    starts: int = 0

    @property
    def finished(self) -> bool:
        return self.state in TERMINAL


@dataclass
class Worker:
    """A worker or agent as the rules see it."""

    registration: str
    online: bool = True
    held: list[str] = field(default_factory=list)
    beats: bool = False
    heard: bool = True  # lately, as its record says
    listed: bool = True  # among those whose silence would be noticed
    listed_heard: bool = True  # lately, as that list says


class Model:
    """Jobs, queues, keys and workers, and how the steps change them."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.workers: dict[str, Worker] = {}
        self.queues: defaultdict[str, list[str]] = defaultdict(list)
        self.line: defaultdict[str, list[str]] = defaultdict(list)  # who waits for a key
        self.children: defaultdict[str, list[str]] = defaultdict(list)
        self.audit: list[tuple[str, str, str]] = []
        self.moved: set[str] = set()  # what this step put into a queue

    # what a job goes through

    def submit(self, actor: str, job: Job) -> None:
        self.jobs[job.id] = job
        unmet = [each for each in job.parents if not self.jobs[each].finished]
        for each in unmet:
            self.children[each].append(job.id)
        if unmet:
            job.wait = "dependency"
        elif job.delayed:
            job.wait = "delay"
        else:
            self.push(job)
        self.audit.append((actor, "job.submit", job.id))

    def push(self, job: Job, *, front: bool = False) -> None:
        job.wait = ""
        self.queues[job.queue].insert(0 if front else len(self.queues[job.queue]), job.id)
        self.moved.add(job.id)

    def _leave(self, job: Job) -> None:
        """Take a job out of wherever it is."""
        if job.state == "running":
            self.workers[job.worker].held.remove(job.id)
        elif not job.wait:
            self._take_out(job.id, self.queues[job.queue])
        job.wait, job.lapsed = "", False

    @staticmethod
    def _take_out(job_id: str, line: list[str]) -> None:
        """Take one entry of a job out of its queue, from the half where it ought to be; a doubled one stays behind."""
        if job_id in line:
            after = job_id > line[len(line) // 2]
            places = [place for place, each in enumerate(line) if each == job_id]
            del line[places[-1 if after else 0]]

    def holder(self, key: str) -> str | None:
        held = [job.id for job in self.jobs.values() if job.key == key and job.state == "running"]
        return held[0] if held else None

    def _pass_key_on(self, job: Job) -> None:
        """The first in line goes on, once nobody holds the key."""
        if not job.key or self.holder(job.key):
            return
        while self.line[job.key]:
            first = self.jobs.get(self.line[job.key].pop(0))
            if first and first.state == "queued" and first.wait == "key":
                self.push(first, front=True)
                return

    def end(self, job: Job, state: str, reason: str, exit_code: str = "") -> None:
        self._leave(job)
        job.state, job.reason, job.exit = state, reason, exit_code
        self._pass_key_on(job)
        for child in [self.jobs[each] for each in self.children.pop(job.id, []) if each in self.jobs]:
            if child.state != "queued":
                continue
            if state != "completed":
                self.end(child, "cancelled", "dependency")
            elif all(self.jobs[each].finished for each in child.parents if each in self.jobs):
                if child.delayed:
                    child.wait = "delay"
                else:
                    self.push(child)

    def _again(self, job: Job, *, pause: bool = False) -> None:
        """Back into the queue after an attempt that did not end the job."""
        self._leave(job)
        job.state, job.worker, job.ahead = "queued", "", False
        self._pass_key_on(job)
        if pause:
            job.wait = "backoff"
        else:
            self.push(job, front=True)

    def lose(self, job: Job) -> None:
        if job.cancel:
            self.end(job, "cancelled", "cancelled")
        elif job.ahead:
            self._again(job)
        elif job.once:
            self.end(job, "failed", "lost")
        else:
            job.deaths += 1
            if job.deaths >= MAX_DEATHS:
                self.end(job, "failed", "quarantined")
            else:
                self._again(job)

    # what workers do

    def register(self, name: str, registration: str, proof: str) -> bool:
        known = self.workers.get(name)
        rival = known is not None and known.registration != proof and known.online
        if known and rival and (known.heard or any(not self.jobs[each].lapsed for each in known.held)):
            return False
        for each in list(known.held) if known else []:
            self.lose(self.jobs[each])
        self.workers[name] = Worker(registration)
        return True

    def depart(self, name: str, *, forget: bool, actor: str) -> None:
        worker = self.workers[name]
        for each in list(worker.held):
            self.lose(self.jobs[each])
        worker.online = worker.listed = False
        if forget:
            del self.workers[name]
        if actor:
            self.audit.append((actor, "worker.delete", name))

    def claim(
        self, name: str, tags: list[str], tag_sets: set[str], most: int, startable: int
    ) -> list[tuple[str, int]]:
        taken: list[tuple[str, int]] = []
        for queue in queues.served(tag_sets, tags):
            while self.queues[queue] and len(taken) < most:
                job = self.jobs.get(self.queues[queue].pop(0))
                if job is None or job.state != "queued" or job.wait:
                    continue
                if job.key and self.holder(job.key):
                    job.wait = "key"
                    self.line[job.key].append(job.id)
                    continue
                job.ahead = len(taken) >= startable
                job.state, job.worker, job.attempt = "running", name, job.attempt + 1
                job.progress = job.reason = job.exit = ""
                job.starts += not job.ahead
                self.workers[name].held.append(job.id)
                taken.append((job.id, job.attempt))
        return taken

    def standing(self, job_id: str, name: str, attempt: int | None) -> str:
        """Whether a write counts: ok, stale (somebody else's), over, or unknown."""
        job = self.jobs.get(job_id)
        if job is None:
            return "unknown"
        if job.worker != name or attempt not in {None, job.attempt}:
            return "stale"
        return "ok" if job.state == "running" else "over"

    def begin(self, job_id: str, name: str, attempt: int) -> bool:
        if self.standing(job_id, name, attempt) != "ok":
            return False
        job = self.jobs[job_id]
        job.starts += job.ahead
        job.ahead = False
        return True

    def settle(  # noqa: PLR0917
        self, job_id: str, name: str, attempt: int | None, outcome: str, reason: str, exit_code: str
    ) -> str:
        """Return the job's state after it, or why the write does not count."""
        standing = self.standing(job_id, name, attempt)
        if standing == "unknown":
            return standing
        job = self.jobs[job_id]
        if standing == "over":
            return job.state
        if standing == "stale":
            unattributed = attempt is None and job.worker == "" and (job.settled or ("", 0))[0] == name
            return job.state if job.settled == (name, attempt) or unattributed else "stale"
        if outcome == "released":
            if job.cancel:
                outcome = "failed"
            elif job.once and not job.ahead:
                outcome, reason = "failed", "lost"
            else:
                job.settled = (name, job.attempt)
                self._again(job)
                return "queued"
        if outcome == "failed" and job.cancel:
            outcome, reason = "cancelled", "cancelled"
        may_retry = reason in {"exit_code", "timeout"} and not job.once and job.failures < job.retries
        if outcome == "failed" and may_retry:
            job.failures += 1
            job.settled = (name, job.attempt)
            job.reason, job.exit = reason, exit_code
            self._again(job, pause=job.pause)
            return "queued"
        self.end(job, outcome, reason, exit_code)
        return job.state

    # what others do

    def cancel(self, actor: str, job_id: str) -> str:
        job = self.jobs[job_id]
        if job.finished:
            return job.state
        if not job.cancel:
            self.audit.append((actor, "job.cancel", job_id))
        job.cancel = True
        if job.state == "running":
            return "requested"
        self.end(job, "cancelled", "cancelled")
        return "cancelled"

    def reap(self, lapsed: list[str], overdue: list[str]) -> tuple[list[str], list[str], list[str]]:
        """Return what was lost, what was cancelled, and who is offline, each in the order it is given."""
        lost = [each for each in lapsed if self.jobs[each].state == "running"]
        for each in lost:
            self.lose(self.jobs[each])
        ended = [each for each in overdue if each in self.jobs and self.jobs[each].state == "running"]
        for each in ended:
            self.end(self.jobs[each], "cancelled", "cancelled")
        silent = [name for name, each in self.workers.items() if each.listed and not each.listed_heard]
        offline = []
        for name in silent:
            worker = self.workers[name]
            if worker.held:
                worker.listed_heard = True
            else:
                worker.online = worker.listed = False
                offline.append(name)
        return lost, ended, offline
