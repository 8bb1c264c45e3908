"""Leadership: of any number of schedulers one does the duties, by a lease that another takes over when it runs out."""

import asyncio
import logging
import os
import random
import secrets
import socket

from scheduler.duties import Duty, table
from storage import upkeep
from storage.errors import HostlerError, Unavailable
from storage.seal import Forged
from storage.store import Store

log = logging.getLogger("hostler.scheduler")

#: A leader that has not renewed for so long has lost the lead.
LEASE_S = 9.0
#: What is done seldom begins so long after the lead was taken: it reads boto3 and asks S3, while all else starts.
SELDOM_S, SETTLED_S = 10.0, 3.0


class Leader:
    """Seeks the lead, and does the duties for as long as it holds it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._me = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._stopping = asyncio.Event()
        self._at_work: list[asyncio.Task[None]] = []

    def stop(self) -> None:
        """Stop soon. Safe to repeat."""
        self._stopping.set()

    async def serve(self) -> None:
        """Lead or wait to, until stopped."""
        loop = asyncio.get_running_loop()
        until = 0.0
        while not self._stopping.is_set():
            asked = loop.time()
            try:
                if not self._at_work:
                    await self._store.keyring.recognise()
                term = await self._store.call(upkeep.lead(self._me, LEASE_S, self._store.settings))
                until = asked + LEASE_S if term else 0.0
            except (Unavailable, Forged) as error:
                log.warning("cannot ask for the lead", extra={"why": str(error)})
            if loop.time() < until and not self._at_work:
                log.info("leading", extra={"me": self._me})
                duties = table(self._store.settings.reap_s)
                self._at_work = [loop.create_task(self._keep_doing(duty)) for duty in duties]
            elif loop.time() >= until and self._at_work:
                log.warning("no longer leading", extra={"me": self._me})
                await self._rest()
            try:
                async with asyncio.timeout(upkeep.ASK_S * random.uniform(0.8, 1)):  # noqa: S311  jitter
                    await self._stopping.wait()
            except TimeoutError:
                continue
        await self._rest()
        try:
            await self._store.call(upkeep.step_down(self._me))
        except Unavailable:
            log.info("left the lead to its lease")

    async def _keep_doing(self, duty: Duty) -> None:
        """Do one duty again and again; what goes wrong is said, and tried again next time."""
        if duty.every_s >= SELDOM_S:
            await asyncio.sleep(SETTLED_S)
        while True:
            try:
                await duty.run(self._store)
            except HostlerError as error:
                log.warning("a duty has to wait", extra={"duty": duty.name, "why": str(error)})
            except Exception:  # one duty's accident must not end the others
                log.exception("a duty failed", extra={"duty": duty.name})
            await asyncio.sleep(duty.every_s)

    async def _rest(self) -> None:
        for task in self._at_work:
            task.cancel()
        await asyncio.gather(*self._at_work, return_exceptions=True)
        self._at_work = []
