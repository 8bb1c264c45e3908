"""The supervisor of a node: makes what runs here what is wished for, and says what there is.

It needs the control plane to hear of new wishes alone: the last ones are kept on disk, with their signatures, and acted
on while Redis is away, also by a worker that is started then.
"""

import asyncio
import contextlib
import fcntl
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path

from settings import Settings
from storage.apps import App, Instance, Phase, Sample
from storage.attempts import Unregistered
from storage.errors import HostlerError, NotFound, NotRunning, Unavailable
from storage.seal import Seal
from workers.forwarding import Address
from workers.log import log
from workers.supervisor import places, state
from workers.supervisor.outbox import Outbox
from workers.supervisor.places import Places
from workers.supervisor.processes import Processes
from workers.supervisor.reports import ControlPlane
from workers.supervisor.samples import Sampler
from workers.supervisor.supervised import Node, Supervised, remembered
from workers.supervisor.users import Users

#: The slow poll behind the wake-ups, which may get lost.
POLL_S = 5.0
#: How often schedules are looked at, logs are told on, and resources are measured.
TICK_S, TELL_S, SAMPLE_S = 0.5, 0.25, 5.0
#: So much is told of one app's logs before the next one's turn.
MOST_BATCHES = 16
#: A worker that leaves tells logs for so long; the next one tells the rest.
LAST_WORDS_S = 1.0
#: An app that the control plane no longer knows is stopped after this time; its files stay.
GONE_S = 60.0
#: How often a worker looks whether the one before it has let go of the apps.
LOCK_S = 0.2


class Supervisor:
    """Keeps the apps of the node called `name`. `run` until cancelled; the apps themselves go on after that."""

    def __init__(
        self,
        settings: Settings,
        seal: Seal,
        control: ControlPlane,
        *,
        name: str,
        isolation: str,
        environment: Mapping[str, str],
    ) -> None:
        self.settings, self.name = settings, name
        try:
            self.users = Users(settings.apps_dir, isolation=isolation)
        except OSError as error:
            raise HostlerError(f"{settings.apps_dir} cannot hold apps: {error.strerror}.") from error
        self.begun = asyncio.Event()
        self._seal, self._control = seal, control
        self._processes = Processes(isolation)
        self._apps: dict[str, Supervised] = {}
        self._outboxes: dict[str, Outbox] = {}
        self._missing_since: dict[str, float] = {}
        self._forgotten: set[str] = set()
        self._going: dict[str, asyncio.Task[None]] = {}  # apps that are gone, and being stopped
        self._sampler = Sampler()
        self._wake = asyncio.Event()
        self._node = Node(
            settings=settings, seal=seal, control=control, processes=self._processes, users=self.users,
            environment=environment, boot=boot_id(), find=self._apps.get, stir=self._stir, holding=Counter(),
        )  # fmt: skip
        self._stirred = False

    # Running

    async def run(self) -> None:
        """Supervise until cancelled. Waits while another worker of this name on this machine does so."""
        with await self._alone():
            listening = self._control.listen(self._wake.set)
            try:
                await self._begin()
                async with asyncio.TaskGroup() as tasks:
                    for chore, pause_s in (
                        (self._keep_up, 0.0), (self._tick, TICK_S), (self._tell, TELL_S), (self._measure, SAMPLE_S),
                    ):  # fmt: skip
                        tasks.create_task(self._again_and_again(chore, pause_s))
            finally:
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)
                await self._end()

    async def _alone(self) -> "contextlib.closing[Lock]":
        lock = Lock(self.settings.apps_dir / f".{self.name}.lock")
        said = False
        try:
            while not lock.taken():
                if not said:
                    log.info(
                        "waiting: another worker of this name supervises its apps",
                        extra={"worker": self.name},
                    )
                    said = True
                await asyncio.sleep(LOCK_S)
        except BaseException:
            lock.close()
            raise
        return contextlib.closing(lock)

    async def _begin(self) -> None:
        for app, memory in remembered(self.settings.apps_dir, self._seal):
            if app.node == self.name:
                await self._care_for(app, memory)
        self.begun.set()

    async def _end(self) -> None:
        for task in self._going.values():
            task.cancel()
        await asyncio.gather(*self._going.values(), return_exceptions=True)
        with contextlib.suppress(HostlerError, OSError, TimeoutError):  # else the next worker tells it
            async with asyncio.timeout(LAST_WORDS_S):
                await self._tell()
        await asyncio.gather(*(each.close() for each in self._apps.values()))
        self._processes.close()

    async def _again_and_again(self, chore: Callable[[], Awaitable[None]], pause_s: float) -> None:
        while True:
            try:
                await chore()
            except (Unavailable, Unregistered):
                await asyncio.sleep(1)
            except Exception:  # one accident must not end the care for all apps
                log.exception("a chore of the supervisor failed")
                await asyncio.sleep(1)
            await asyncio.sleep(pause_s)

    async def _keep_up(self) -> None:
        """Take up the wishes, then wait for others."""
        self._wake.clear()
        found = {app.instance_id: app for app in await self._control.wished() if app.node == self.name}
        for app in found.values():
            with _alone_with(app.instance_id):
                if app.instance_id not in self._apps and app.instance_id not in self._forgotten:
                    await self._take_in(app)
                elif app.instance_id in self._apps:
                    self._apps[app.instance_id].desire(app)
        self._forgotten &= set(found)
        for supervised in list(self._apps.values()):
            await self._rest(supervised)
        self._stop_the_gone(set(found))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLL_S):
                await self._wake.wait()

    async def _rest(self, supervised: Supervised) -> None:
        try:
            await supervised.rest()
        except HostlerError as error:
            log.warning(
                "cannot say that an app rests", extra={"app": supervised.app.instance_id, "why": str(error)}
            )

    async def _take_in(self, app: App) -> None:
        """Begin to care for an app, if there is anything of it to care for yet."""
        if app.phase in {Phase.INSTALLING, Phase.REMOVING}:
            return
        root = self.places(app.instance_id)
        if root.current.is_symlink():
            await self._care_for(app, state.read(root.state))

    async def _care_for(self, app: App, memory: state.Memory | None) -> Supervised | None:
        supervised = await self._begun_with(app, memory)
        if supervised is None and memory is not None:  # what is remembered may make no sense: go on without
            supervised = await self._begun_with(app, None)
        if supervised is None:
            return None
        if known := self._apps.get(app.instance_id):  # taken in by somebody else meanwhile
            await supervised.close()
            return known
        self._apps[app.instance_id] = supervised
        self._outboxes[app.instance_id] = Outbox(app.instance_id, supervised.places.logs)
        supervised.reconcile()
        return supervised

    async def _begun_with(self, app: App, memory: state.Memory | None) -> Supervised | None:
        """Return an app in our care; None, and a word in the log, where that cannot be. Others go on either way."""
        supervised, begun = None, False
        try:
            supervised = Supervised(app, self._node, memory)
            await supervised.begin()
            begun = True
        except (HostlerError, OSError) as error:
            log.error("cannot care for an app", extra={"app": app.instance_id, "why": str(error)})
        except Exception:
            log.exception("cannot care for an app", extra={"app": app.instance_id})
        finally:  # also where we are told to end meanwhile
            if supervised is not None and not begun:
                await supervised.close(remember=False)
        return supervised if begun else None

    def _stop_the_gone(self, known: set[str]) -> None:
        """Stop apps that the control plane has not known for a while, which may take them a while, too."""
        now = time.monotonic()
        self._missing_since = {
            name: self._missing_since.get(name, now) for name in self._apps if name not in known
        }
        for name, since in list(self._missing_since.items()):
            if now - since > GONE_S and name not in self._going:
                log.warning(
                    "stopping an app that the control plane does not know any more", extra={"app": name}
                )
                self._going[name] = asyncio.get_running_loop().create_task(self._stop_gone(name))

    async def _stop_gone(self, name: str) -> None:
        try:
            with _alone_with(name):
                await self.forget(name)
                self._forgotten.discard(name)
                self.places(name).state.unlink(missing_ok=True)
        finally:
            del self._going[name]

    def _stir(self) -> None:
        if not self._stirred:
            self._stirred = True
            asyncio.get_running_loop().call_soon(self._stir_all)

    def _stir_all(self) -> None:
        self._stirred = False
        for name, supervised in self._apps.items():
            with _alone_with(name):
                supervised.look_again()

    async def _tick(self) -> None:
        for name, supervised in self._apps.items():
            with _alone_with(name):
                supervised.runs.tick()

    async def _tell(self) -> None:
        for name, outbox in list(self._outboxes.items()):
            if (supervised := self._apps.get(name)) is None:  # forgotten while others were told of
                continue
            alive = {each.name for each in supervised.instances.values() if each.kept is not None}
            with contextlib.suppress(NotFound), _alone_with(name):
                for _ in range(MOST_BATCHES):  # others have something to say, too
                    if not await outbox.send(self._control, alive):
                        break

    async def _measure(self) -> None:
        roots = {
            f"{name}/{each.name}": each.kept.pid
            for name, supervised in self._apps.items()
            for each in supervised.instances.values()
            if each.kept is not None and each.kept.pid is not None
        }
        if not roots:
            return
        found = await asyncio.to_thread(self._sampler.take, roots)
        for name, supervised in list(self._apps.items()):
            own = {
                each.name: usage
                for each in supervised.instances.values()
                if (usage := found.get(f"{name}/{each.name}")) is not None
            }
            if supervised.measured(own):
                await self._keep_samples(supervised)

    async def _keep_samples(self, supervised: Supervised) -> None:
        at_ms = time.time_ns() // 1_000_000
        samples = [
            Sample(
                at_ms, each.process.name, each.index, each.usage.cpu_percent, each.usage.memory_rss_bytes,
                each.usage.memory_percent, each.life.restart_count, each.life.state.value,
            )
            for each in supervised.instances.values()
            if each.usage is not None
        ]  # fmt: skip
        with contextlib.suppress(NotFound):
            await self._control.sample(supervised.app.instance_id, samples)

    # For jobs

    def places(self, instance_id: str) -> Places:
        """Return where an app lies. Raises Invalid."""
        return places.of(self.settings.apps_dir, instance_id)

    def user(self, instance_id: str) -> int | None:
        """Return the user that an app runs as; None where apps share the worker's. Raises HostlerError."""
        return self.users.of(instance_id)

    async def apply(self, app: App) -> None:
        """Act on what is wished at once; while the app is being updated, on this in the place of the wish.

        Raises NotFound where there is no release to run.
        """
        self._forgotten.discard(app.instance_id)
        supervised = self._apps.get(app.instance_id)
        if supervised is None:
            root = self.places(app.instance_id)
            root.release()
            supervised = await self._care_for(app, state.read(root.state))
        if supervised is None:
            raise NotFound(
                f"App {app.instance_id!r} cannot be cared for on this node; its worker's log says why."
            )
        supervised.act_on(app)

    @contextlib.asynccontextmanager
    async def held(self, instance_id: str) -> AsyncIterator[None]:
        """Have nothing of an app run; it stands still within, and goes on as wished afterwards."""
        self._node.holding[instance_id] += 1
        try:
            if (supervised := self._apps.get(instance_id)) is not None:
                supervised.taken_up = True
                supervised.reconcile()
                await supervised.stopped()
            yield
        finally:
            self._node.holding[instance_id] -= 1
            if (supervised := self._apps.get(instance_id)) is not None:
                supervised.reconcile()

    async def forget(self, instance_id: str) -> None:
        """Stop an app and care for it no longer, until it is applied again or its record is another. Safe to repeat."""
        self._forgotten.add(instance_id)
        async with self.held(instance_id):
            supervised = self._apps.pop(instance_id, None)
            self._outboxes.pop(instance_id, None)
            if supervised is not None:
                await supervised.close()
                self._stir()

    def observed(self, instance_id: str) -> list[Instance]:
        """Return the instances of an app as they are now; none for one that is not cared for."""
        supervised = self._apps.get(instance_id)
        return [] if supervised is None else supervised.shown()

    async def until(
        self, instance_id: str, predicate: Callable[[Sequence[Instance]], bool], timeout_s: float
    ) -> bool:
        """Wait until the instances of an app are as `predicate` says; answers whether they were, within the time."""
        try:
            async with asyncio.timeout(timeout_s):
                while not predicate(self.observed(instance_id)):
                    supervised = self._apps.get(instance_id)
                    if supervised is None:
                        await asyncio.sleep(TELL_S)
                    else:
                        await supervised.changed.wait()
        except TimeoutError:
            return predicate(self.observed(instance_id))
        return True

    def supervised(self, instance_id: str) -> Supervised:
        """Return an app that is cared for. Raises NotFound."""
        supervised = self._apps.get(instance_id)
        if supervised is None:
            raise NotFound(f"There is no app {instance_id!r} on this node.")
        return supervised

    # For requests

    def address(self, instance_id: str, process: str, index: int) -> Address:
        """Return where an instance listens; process "" serves the routes. Raises NotFound, NotRunning."""
        supervised = self.supervised(instance_id)
        manifest = supervised.wish.manifest
        routes = manifest.routes.process if manifest is not None and manifest.routes is not None else None
        listening = [each.name for each in supervised.wish.processes if each.socket or each.port is not None]
        name = process or routes or next(iter(listening), "")
        if not name:
            raise NotFound(f"No process of app {instance_id!r} has a socket or a port.")
        if supervised.wish.process(name) is None:
            raise NotFound(f"App {instance_id!r} has no process {name!r}.")
        if name not in listening:
            raise NotFound(f"Process {name!r} of app {instance_id!r} has neither a socket nor a port.")
        instance = supervised.instances.get((name, index))
        if instance is None or instance.kept is None or (instance.socket is None and instance.port is None):
            raise NotRunning(f"App {instance_id!r} is not running.")
        return Address(socket=instance.socket, port=instance.port, uid=self.user(instance_id))

    def release(self, instance_id: str) -> Path:
        """Return the directory of the active release. Raises NotFound."""
        return self.supervised(instance_id).places.release()

    def log_file(self, instance_id: str, process: str, index: int) -> Path:
        """Return where an instance's output goes; process "" is the first. Raises NotFound."""
        supervised = self.supervised(instance_id)
        name = process or next((each.name for each in supervised.wish.processes), "")
        if supervised.wish.process(name) is None or index < 0:
            raise NotFound(f"App {instance_id!r} has no process {name!r}.")
        return supervised.places.log(name, index)


@contextlib.contextmanager
def _alone_with(instance_id: str) -> Iterator[None]:
    """Have an accident with one app cost the others nothing; what concerns all of them passes."""
    try:
        yield
    except (Unavailable, Unregistered, NotFound):
        raise
    except Exception:
        log.exception("an accident with an app", extra={"app": instance_id})


class Lock:
    """A file that one process at a time holds, until it ends, whichever way."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def taken(self) -> bool:
        """Take it; answers whether that could be done."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Let go of it, for a process that is just being started too, which has a copy of the descriptor until exec."""
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        os.close(self._fd)


def boot_id() -> str:
    """Return what is different after each boot, where the system says so."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
