"""Telling the control plane what has changed with an app: together what happens together, and until it is heard."""

import asyncio
from collections.abc import Awaitable, Callable

from storage.apps import KEPT_RUNS, Run
from storage.attempts import Unregistered
from storage.errors import HostlerError, NotFound, Unavailable
from workers.log import log

#: What happens within this time is reported together.
TOGETHER_S = 0.05
#: So long between two tries to report.
REPORT_AGAIN_S = 1.0


class Reporter:
    """Reports on one app, from `begin` until `close`.

    `tell` says what there is, `keep` a run that has ended; both may raise what the control plane does.
    """

    def __init__(
        self,
        app_id: str,
        *,
        tell: Callable[[], Awaitable[None]],
        keep: Callable[[Run], Awaitable[None]],
    ) -> None:
        self._app_id = app_id
        self._tell, self._keep = tell, keep
        self.untold: list[Run] = []  #: runs that have ended, and that are not kept in the history yet
        self._dirty = asyncio.Event()
        self._changes = self._told = 0  # how often something changed, and how much of that has been reported
        self._reported = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Report from now on."""
        self._task = asyncio.get_running_loop().create_task(self._keep_reporting())

    async def close(self) -> None:
        """Report no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def change(self) -> None:
        """Something has changed."""
        self._changes += 1
        self._dirty.set()

    def measured(self) -> None:
        """What is shown differs, though nothing has happened that anybody waits for."""
        self._dirty.set()

    def note(self, run: Run) -> None:
        """Tell of a run that has ended."""
        self.untold.append(run)
        del self.untold[:-KEPT_RUNS]  # while Redis is away; no more are kept there

    async def caught_up(self) -> None:
        """Return once everything that has happened so far has been told."""
        changes = self._changes
        while self._told < changes:
            await self._reported.wait()

    async def _keep_reporting(self) -> None:
        while True:
            await self._dirty.wait()
            await asyncio.sleep(TOGETHER_S)
            self._dirty.clear()
            try:
                await self._report()
            except (Unavailable, Unregistered):
                self._dirty.set()
                await asyncio.sleep(REPORT_AGAIN_S)
            except NotFound:  # it has been removed meanwhile; the next look at the wishes says so
                await asyncio.sleep(REPORT_AGAIN_S)
            except HostlerError as error:
                log.warning("cannot report", extra={"app": self._app_id, "why": str(error)})
                self._dirty.set()
                await asyncio.sleep(REPORT_AGAIN_S)
            except Exception:
                log.exception("cannot report", extra={"app": self._app_id})
                await asyncio.sleep(REPORT_AGAIN_S)

    async def _report(self) -> None:
        changes = self._changes
        await self._tell()
        while self.untold:
            run = self.untold[0]
            await self._keep(run)
            if run in self.untold:  # else so many came meanwhile that it was left out
                self.untold.remove(run)
        self._told = changes
        done, self._reported = self._reported, asyncio.Event()
        done.set()
