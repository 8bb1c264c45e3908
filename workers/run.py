"""One attempt of a job: its directory, its process, its output, its end."""

import asyncio
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from integrations.tracing import NO_SPAN, OFF, Span, Tracing
from storage import cause
from storage.errors import Conflict, HostlerError, Invalid, NotFound, Unavailable
from workers.insisting import insist, insist_unless
from workers.lines import IntegrityError, Line, Offer
from workers.log import log
from workers.output import Output
from workers.platforms import Child, Command, CommandNotStarted, Outcome, Platform
from workers.platforms import Output as Pipe
from workers.workspace import Workspace

#: After so much of what an ended command has left, others have their turn.
TURN_BYTES = 64 * 1024
#: A command that prints again so soon after the last read is one that floods: its next read waits for half as long, and
#: for twice as long as before with each that finds more, so that it brings many lines and not a few, unless the pipe is
#: filling up.
FLOOD_S = 0.002
LONGEST_PAUSE_S = 0.004
#: How long a file that cannot be fetched for now is tried before the job is handed back.
FETCH_PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What all attempts of one worker share."""

    line: Line
    platform: Platform
    workspace: Workspace
    environment: Mapping[str, str]
    spool: str
    kill_grace_s: float
    log_limit_bytes: int
    live_bytes: int
    tracing: Tracing = OFF


@dataclass(slots=True)
class Ending:
    """How an attempt ended: `outcome` and `reason` as `attempts.settle` takes them."""

    outcome: str
    reason: str = ""
    exit_code: int | None = None
    facts: dict[str, str | int] = field(default_factory=dict)


class Run:
    """Carries out one attempt; `stop` ends it early, for a reason."""

    def __init__(
        self,
        offer: Offer,
        slot: int,
        around: Circumstances,
        slot_freed: "Callable[[Run], None]" = lambda run: None,
        *,
        held_long: bool = False,
        held_s: float = 0.0,
    ) -> None:
        self.offer, self.slot, self.around = offer, slot, around
        self.cause = cause.of_spec(offer.spec)
        self.span = NO_SPAN if not around.tracing.on else self._span(held_s)
        loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[None] = loop.create_future()
        self.slot_free: asyncio.Future[None] = loop.create_future()
        self.child: Child | None = None
        self.follows = False  # another command, until that has ended: then this one has been started
        self.began_s = time.monotonic()
        self.why_stopped: str | None = None
        self._slot_freed = slot_freed
        self._begun = not offer.held_ahead
        # what was claimed a moment ago is surely still ours; only what may run but once waits to hear that
        self._ask_first = offer.held_ahead and (held_long or offer.at_most_once)
        self._directory: Path | None = None
        self._working_directory: Path | None = None
        self._mistake: Exception | None = None
        self._output: Output | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self._read_at = {"o": 0.0, "e": 0.0}
        self._pause_s = {"o": 0.0, "e": 0.0}
        self._reads = True

    @property
    def output(self) -> Output:
        """What it prints, on its way to the control plane; made once there is something, as of many a job never is."""
        if self._output is None:
            self._output = Output(
                self.around.line, self.offer, directory=self.around.spool, limit_bytes=self.around.log_limit_bytes,
                live_bytes=self.around.live_bytes, gone=lambda: self.stop("lost"),
                cancel=lambda: self.stop("cancelled"),
            )  # fmt: skip
        return self._output

    def _span(self, held_s: float) -> Span:
        """Begin the span of this attempt, at the moment it was claimed."""
        span = self.around.tracing.begin(
            "job", kind="consumer", parent=self.cause.traceparent, began_s_ago=held_s,
            hostler_job=self.offer.job_id, hostler_attempt=self.offer.attempt,
        )  # fmt: skip
        span.step("claim", began_s_ago=held_s).end()
        return span

    def stop(self, why: str) -> None:
        """End the attempt: `cancelled`, `timeout`, `released` (TERM, grace, KILL) or `lost` (KILL). Safe to repeat."""
        if self.why_stopped is not None and why != "lost":
            return
        self.why_stopped = why
        if self.child is None or self.exited.done():
            return
        if self.follows:
            self.recall()
        else:
            self._end(self.child)

    def _end(self, child: Child) -> None:
        if self.why_stopped == "lost":
            child.kill()
            return
        child.terminate()
        loop = asyncio.get_running_loop()
        self._timers.append(loop.call_later(self.around.kill_grace_s, child.kill))

    def runs_since(self, time_s: float) -> bool:
        """Tell whether its command runs, and was started after that time of the monotonic clock."""
        return self.began_s > time_s and self.child is not None and not self.exited.done()

    def start(self) -> None:
        """Start the command at once, so that its slot does not idle; nothing where something has to be waited for.

        What the command does not wait for comes after it.
        """
        if self.offer.needs_files or self._ask_first:
            return
        try:
            self._directory = self.around.workspace.make(self.slot, self.offer.owner)
            self._watch(self._spawn(self._directory))
        except Exception as error:  # `carry_out` tells it, or whoever awaits that
            self._mistake = error
        self._begin_unheard()  # it leaves in the write at the end of this turn of the loop

    def follow(self, before: Child, until_s: float) -> None:
        """Have the command start once another one has ended, but not after `until_s`. Raises HostlerError, OSError."""
        self.follows = True
        self._directory = self.around.workspace.make(self.slot, self.offer.owner)
        self._spawn(self._directory, after=before, until_s=until_s)

    def recall(self) -> None:
        """Keep the command from starting if what it follows has not ended: then it is given back."""
        if self.child is not None:
            self.child.recall()

    def has_started(self) -> None:
        """Hear that what it followed has ended, so that the command runs."""
        self.follows = False
        self.began_s = time.monotonic()
        if self.child is not None:
            self._watch(self.child)
            self._begin_unheard()
            if self.why_stopped is not None:  # it could not be called back any more
                self._end(self.child)

    def give_up(self) -> None:
        """Let go of everything: the command was not started after all."""
        if self.child is not None:
            self.child.close()
        if self._directory is not None:
            self.around.workspace.discard(self._directory, self.slot)
        self.slot_free.set_result(None)
        self.span.end(failed="given back")

    async def carry_out(self) -> None:
        """Do the whole of it, or what `start` has left to do. Raises nothing that concerns this job alone."""
        try:
            if not self._begun and not await self._begin():
                return
            step = self.span.step("run")
            try:
                ending = await self._attempt()
            except (HostlerError, OSError) as error:
                ending = self._failed(error)
            step.end(failed=ending.reason)
            self._free_slot()
            step = self.span.step("settle")
            await deliver(
                self.around.line, self.offer, self._output, ending, lambda: self.why_stopped == "lost"
            )
            step.end()
            self.span.end(failed=ending.reason, hostler_outcome=ending.outcome)
            log.debug("an attempt ended", extra={"outcome": ending.outcome, "reason": ending.reason})
        finally:
            self._free_slot()
            self.span.end(failed="given up")  # unless it has ended
            while self._timers:
                self._timers.pop().cancel()
            if self._output is not None:
                await self._output.close()
            if self._directory is not None:
                self.around.workspace.discard(self._directory, self.slot)

    def has_exited(self) -> None:
        """Hear that the main process is gone, and with it whatever it left: the slot is free for another."""
        if not self.exited.done():
            self.exited.set_result(
                None
            )  # first, so that the result leaves in one write with the next one's start
            self._free_slot()

    def _free_slot(self) -> None:
        if self.slot_free.done():
            return
        if (
            self._directory is not None and not self._removed()
        ):  # the slot's next command may be of the same user
            try:
                self.around.platform.withhold_directory(self._directory)
            except OSError as error:
                log.warning("a directory could not be taken back", extra={"why": str(error)})
        self.slot_free.set_result(None)
        self._slot_freed(self)

    def _removed(self) -> bool:
        """Let go of the directory if nothing is in it, as after most jobs, and nobody will look; tell whether so."""
        if self._directory is None or self.offer.spec.get("artifacts"):
            return False
        removed = self.around.workspace.take_back(self._directory, self.slot)
        if removed:
            self._directory = None
        return removed

    def _begin_unheard(self) -> None:
        if not self._begun:
            self._begun = True
            self.around.line.begin_unheard(self.offer, lambda: self.stop("lost"))

    async def _begin(self) -> bool:
        """Say that a held job starts; answers False if it is not ours any more."""
        if not self._ask_first:
            self._begin_unheard()
            return True
        return await insist(partial(self.around.line.begin, self.offer))

    async def _attempt(self) -> Ending:
        """Fetch, execute, and collect what is left. Raises HostlerError, OSError."""
        if self._mistake is not None:
            raise self._mistake
        if self.child is None:
            self._directory = self.around.workspace.make(self.slot, self.offer.owner)
            if not await self._fill(self._directory):
                return Ending("released")
            if self.why_stopped is None:
                self._watch(self._spawn(self._directory))
        outcome = None if self.child is None else await self._ended(self.child)
        ending = self._judged(outcome)
        artifacts = self.offer.spec.get("artifacts") and ending.outcome in {"completed", "failed"}
        if artifacts and self._directory is not None and self._working_directory is not None:
            self._free_slot()  # what follows needs no slot, and nothing of the job runs any more
            self.around.platform.reclaim_directory(self._directory)
            await self._keep_artifacts(self._working_directory, ending)
        return ending

    async def _fill(self, directory: Path) -> bool:
        """Fill the directory; False when what it needs could not be had for now, so that the job is handed back."""
        loop = asyncio.get_running_loop()
        patience = loop.time() + FETCH_PATIENCE_S
        while True:
            try:
                await self.around.workspace.fill(
                    self.around.line, self.offer, directory, self.slot,
                    cancelled=lambda: self.why_stopped is not None,
                )  # fmt: skip
                return True
            except Unavailable as error:
                if self.why_stopped is not None:
                    return True
                if loop.time() > patience:
                    self.output.say(f"handed back: {error}")
                    return False
                await asyncio.sleep(1)

    def _spawn(self, directory: Path, after: Child | None = None, until_s: float = 0.0) -> Child:
        """Start the command. Raises HostlerError, OSError."""
        spec = self.offer.spec
        self._working_directory = self.around.workspace.working_directory(spec, directory)
        home, parent = str(directory), self.span.traceparent or self.cause.traceparent
        command = Command(
            argv=_argv(spec),
            environment={
                **self.around.environment,
                "HOME": home,
                "TMPDIR": home,  # the machine's own is shared, and closed to it under Landlock
                **(cause.Cause(traceparent=parent).environment if parent else {}),
                **{str(name): str(value) for name, value in dict(spec.get("env") or {}).items()},
                "HOSTLER_JOB_ID": self.offer.job_id,
                "HOSTLER_ATTEMPT": str(self.offer.attempt),
            },
            directory=self._working_directory,
            slot=self.slot,
            job_id=self.offer.job_id,
        )
        self.child = self.around.platform.spawn(command, after=after, until_s=until_s)
        return self.child

    def _watch(self, child: Child) -> None:
        """Read what the command prints, and end it after its time."""
        for channel, pipe in (("o", child.stdout), ("e", child.stderr)):
            self.around.platform.watch(pipe, partial(self._hear, channel, pipe))
        timeout_s = float(self.offer.spec.get("timeout_s") or 600)
        self._timers.append(asyncio.get_running_loop().call_later(timeout_s, self.stop, "timeout"))

    async def _ended(self, child: Child) -> Outcome:
        """Wait for the end of the command and read what is left of its output. Raises CommandNotStarted."""
        pipes = (("o", child.stdout), ("e", child.stderr))
        try:
            await self.exited
            self._reads = False
            for channel, pipe in pipes:  # all that it wrote is in the pipes by now
                while size := self._read(channel, pipe):
                    if size >= TURN_BYTES:
                        await asyncio.sleep(0)
        finally:
            self._reads = False
            for _, pipe in pipes:
                if not pipe.closed:
                    self.around.platform.forget(pipe)
        if self._output is not None:
            self._output.end()
        return child.outcome()

    def _hear(self, channel: str, pipe: Pipe) -> None:
        """Read what there is; let more of it gather where it comes in a flood."""
        loop = asyncio.get_running_loop()
        before, self._read_at[channel] = self._read_at[channel], loop.time()
        pause_s = self._pause_s[channel]
        floods = self._read_at[channel] - before < pause_s + FLOOD_S
        self._pause_s[channel] = pause_s = min(2 * pause_s or FLOOD_S / 2, LONGEST_PAUSE_S) if floods else 0.0
        size = self._read(channel, pipe)
        if size > pipe.room_bytes // 2:  # it fills up, and would keep the command waiting
            pipe.widen()
        elif size and floods and self._reads:
            self.around.platform.unwatch(pipe)
            loop.call_later(pause_s, self._hear_on, channel, pipe)

    def _hear_on(self, channel: str, pipe: Pipe) -> None:
        if self._reads:
            self.around.platform.watch(pipe, partial(self._hear, channel, pipe))

    def _read(self, channel: str, pipe: Pipe) -> int:
        """Read once; answers how many bytes there were."""
        if pipe.closed:
            return 0
        data = pipe.read(pipe.room_bytes)
        if data:
            self.output.feed(channel, data)
            return len(data)
        if data == b"":
            self.around.platform.forget(pipe)
        return 0

    def _judged(self, outcome: Outcome | None) -> Ending:
        facts: dict[str, str | int] = {}
        exit_code = None
        if outcome is not None:
            facts = {"cpu_ms": round(outcome.cpu_s * 1000), "max_rss_bytes": outcome.max_rss_bytes}
            exit_code = outcome.exit_code
            if outcome.signal is not None:
                facts["signal"] = outcome.signal
                exit_code = 128 + outcome.signal  # as shells say it
        why = self.why_stopped
        if why == "timeout":
            self.output.say(f"timed out after {self.offer.spec.get('timeout_s')} s")
            return Ending("failed", "timeout", exit_code, facts)
        if why in {"cancelled", "released", "lost"}:
            outcome_word = "released" if why == "released" else "cancelled"
            return Ending(outcome_word, "cancelled" if why == "cancelled" else "", exit_code, facts)
        if exit_code:
            return Ending("failed", "exit_code", exit_code, facts)
        return Ending("completed", "", exit_code, facts)

    def _failed(self, error: HostlerError | OSError) -> Ending:
        if self.why_stopped is not None:  # what was stopped on our word is nobody's failure
            return self._judged(None)
        message = (
            str(error) if isinstance(error, HostlerError) else f"{error.strerror}: {error.filename or ''}"
        )
        self.output.say(message)
        reason = "integrity" if isinstance(error, IntegrityError) else "invalid"
        exit_code = 127 if isinstance(error, CommandNotStarted) else None
        if not isinstance(error, Invalid | CommandNotStarted):
            log.error("a job could not be carried out", extra={"job": self.offer.job_id, "why": message})
        return Ending("failed", reason, exit_code, {"message": message[:1000]})

    async def _keep_artifacts(self, directory: Path, ending: Ending) -> None:
        """Store what the job left; a failure of ours to find it fails the job, an absent store is waited for."""
        patterns = [str(pattern) for pattern in self.offer.spec.get("artifacts") or ()]
        try:
            found = await asyncio.to_thread(
                lambda: list(self.around.workspace.artifacts(patterns, directory))
            )
            for artifact in found:
                await insist(partial(self.around.line.put_artifact, self.offer, artifact.name, artifact.path))
        except (Conflict, NotFound):
            self.stop("lost")
        except (HostlerError, OSError) as error:
            self.output.say(f"artifacts: {error}")
            ending.outcome, ending.reason = "failed", "invalid"
            ending.facts["message"] = str(error)[:1000]


async def deliver(
    line: Line, offer: Offer, output: Output | None, ending: Ending, is_lost: Callable[[], bool]
) -> None:
    """Deliver the output, then the result, trying again for as long as the control plane is away."""
    if output is not None:
        await output.delivered()
        if output.truncated:
            ending.facts["truncated"] = 1
    settle = partial(line.settle, offer, ending.outcome, ending.reason, ending.exit_code, ending.facts)
    try:
        await insist_unless(is_lost, settle)
    except HostlerError as error:
        log.warning("a result was refused", extra={"job": offer.job_id, "why": str(error)})


def _argv(spec: Mapping[str, object]) -> list[str]:
    """Return what to start: the argument list as given, or the shell with the command."""
    argv = spec.get("argv")
    if isinstance(argv, list) and argv:
        return [str(word) for word in argv]
    shell = ["cmd", "/d", "/c"] if sys.platform == "win32" else ["/bin/sh", "-c"]
    return [*shell, str(spec["command"])]
