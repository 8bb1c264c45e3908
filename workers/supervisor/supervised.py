"""One app in the supervisor's care: what is wished of it, and its instances, which are made to be so."""

import asyncio
import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson

from settings import Settings
from storage.apps import App, Run
from storage.apps import Instance as Shown
from storage.errors import HostlerError
from storage.manifests import Manifest, Process
from storage.seal import Seal
from workers.forwarding import identity_key
from workers.installs import updating
from workers.installs.toolchains import search_path
from workers.log import log
from workers.supervisor import dependencies, events, places, processes, state
from workers.supervisor.instance import Instance, Obstacle, Surroundings
from workers.supervisor.life import ALIVE, State
from workers.supervisor.processes import Ended, NotStarted, Processes
from workers.supervisor.reporting import Reporter
from workers.supervisor.reports import ControlPlane
from workers.supervisor.runs import Runs
from workers.supervisor.samples import Usage
from workers.supervisor.state import Memory
from workers.supervisor.users import Users

#: With less room than this on its disk, nothing of an app is started.
DISK_FLOOR_BYTES = 1024 * 1024
#: What installs leave here while an update is under way; nothing starts before they have taken it up again.
JOURNAL = "update.json"
READY = frozenset({State.RUNNING, State.COMPLETED})


@dataclass(frozen=True, slots=True)
class Node:
    """What all apps of this node share."""

    settings: Settings
    seal: Seal
    control: ControlPlane
    processes: Processes
    users: Users
    environment: Mapping[str, str]
    boot: str
    find: Callable[[str], "Supervised | None"]
    stir: Callable[[], None]  # something changed that others may have waited for
    holding: Counter[str]  # jobs that have an app stand still, by its id


class Supervised:
    """An app on this node. What happens is done by its tasks, from `begin` until `close`."""

    def __init__(self, app: App, node: Node, memory: Memory | None = None) -> None:
        self.app, self.node = app, node
        self.places = places.of(node.settings.apps_dir, app.instance_id)
        self.uid = node.users.of(app.instance_id)
        self.instances: dict[tuple[str, int], Instance] = {}
        self.runs = Runs(app.instance_id, self)
        self.changed = asyncio.Event()
        self.memory = memory or Memory(boot=node.boot)
        self.override: App | None = None  # what a job has us run while it is under way
        self.taken_up = False  # a job has told us what to do with it, since this process began
        self._lives: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._asked_for: set[str] = set()  # oneshot processes whose run now was asked for by hand
        self._wanted: set[tuple[str, int]] = set()
        self.reporter = Reporter(
            app.instance_id, tell=self._tell,
            keep=lambda run: node.control.ran(app.instance_id, run),
        )  # fmt: skip
        self._emitting: events.Emitter | None = None
        self._preparing = asyncio.Lock()
        self._around = Surroundings(
            app=app.instance_id, places=self.places, uid=self.uid, processes=node.processes, manifest=self._manifest,
            environment=self._environment, prepare=self._prepare, obstacle=self._obstacle, sweep=self._sweep,
            changed=self.change, ended=self._ended,
        )  # fmt: skip

    # What instances ask

    def _manifest(self) -> Manifest:
        manifest = self.wish.manifest
        return manifest if manifest is not None else Manifest(id=self.app.product, processes=())

    @property
    def wish(self) -> App:
        """Return what is acted on: the wish, or what a job has put in its place for now."""
        return self.override or self.app

    def _environment(self, release: Path) -> Mapping[str, str]:
        inherited = self.node.environment
        return {
            **inherited,
            "PATH": search_path(release, self.node.settings.apps_dir, inherited.get("PATH", "")),
            "HOME": str(self.places.data),
            "TMPDIR": str(self.places.tmp),
            "HOSTLER_APP": self.app.instance_id,
            "HOSTLER_DATA_DIR": str(self.places.data),
            "HOSTLER_CONFIG_FILE": str(self.places.config),
            "HOSTLER_EVENTS_SOCKET": str(self.places.events),
            "HOSTLER_IDENTITY_KEY": identity_key(self.node.seal, self.app.instance_id),
        }

    def _left_updating(self) -> bool:
        """Tell whether an update was under way when an earlier worker ended, and no job has gone on with it yet."""
        return not self.taken_up and (self.places.root / JOURNAL).exists()

    async def _prepare(self) -> None:
        """Make the directories, the socket for events and the configuration. Raises HostlerError, OSError."""
        async with self._preparing:
            runs = any(each.kept is not None for each in self.instances.values())
            if self._left_updating() and self.app.releases and not runs:  # its job was given up
                await asyncio.to_thread(updating.converge, self.places, self.app.releases[0].dir)
        self.places.make(self.uid)
        content = orjson.dumps(self.wish.config(self.node.seal), option=orjson.OPT_INDENT_2)
        try:
            unchanged = self.places.config.read_bytes() == content
        except OSError:
            unchanged = False
        if not unchanged:
            self.places.write_config(content, self.uid)
        await self._hear()

    async def _hear(self) -> None:
        """Listen to what it tells its watchers. Raises OSError; the next start tries again."""
        if self._emitting is not None:
            return
        emitter = self._emitting = events.Emitter(
            self.app.instance_id, self.places.events, self.uid, self.node.control
        )
        try:
            await emitter.open()
        except BaseException:
            self._emitting = None
            await emitter.close()
            raise

    def _obstacle(self, process: Process) -> Obstacle | None:
        try:
            free_bytes = shutil.disk_usage(self.places.root).free
        except OSError as error:
            return Obstacle(f"Its directory cannot be used: {error.strerror}.")
        if free_bytes < DISK_FLOOR_BYTES:
            return Obstacle(
                f"The disk of this node is full, with {free_bytes} bytes left: nothing starts before there is room."
            )
        if self.app.phase == "updating" and self._left_updating():
            return Obstacle("It waits for its update to go on.")
        found = [
            each for name in process.depends_on if (each := dependencies.unready(self, name)) is not None
        ]
        return next((each for each in found if each.hopeless), found[0] if found else None)

    def is_ready(self, process: Process) -> bool:
        """Tell whether all instances of a process that shall be there are ready."""
        wanted = self.wish.wanted(process)
        if process.type == "scheduled":
            return wanted.running
        if not wanted.running:
            return False
        once = process.type == "oneshot"  # which is ready once it is over, not while it is at work
        found = [self.instances.get((process.name, index)) for index in range(1 if once else wanted.scale)]
        ready = frozenset({State.COMPLETED}) if once else READY
        return all(each is not None and each.life.state in ready for each in found)

    async def _sweep(self) -> None:
        spared = {each.kept.keeper_pid for each in self.instances.values() if each.kept is not None}
        await asyncio.to_thread(processes.sweep, self.places.records, self.uid, spared)

    def change(self) -> None:
        """Say that something has changed: to the control plane, and to whoever waits for it here."""
        self.reporter.change()
        done, self.changed = self.changed, asyncio.Event()
        done.set()
        self.node.stir()

    # From beginning to end

    async def rest(self) -> None:
        """Have the wish itself say that it stays stopped, if the reboot of its node stopped it. Raises HostlerError."""
        if self.memory.held_back is not None:
            self.desire(await self.node.control.rest(self.app.instance_id))

    async def begin(self) -> None:
        """Take over what runs of it, and begin to tell how it is. Raises HostlerError, OSError."""
        self.places.make(self.uid)
        rebooted = bool(self.memory.boot) and self.memory.boot != self.node.boot
        if rebooted:
            self.memory.lives = {}
        self.memory.boot = self.node.boot
        self.runs.recall(self._manifest().processes, self.memory.timetables)
        await self._adopt()
        await self._sweep()
        if self.alive:
            try:
                await self._hear()
            except OSError as error:
                log.error("cannot hear an app", extra={"app": self.app.instance_id, "why": str(error)})
        if rebooted and not self.app.autostart and self.app.desired == "running":
            self.memory.held_back = self.app.generation
        for run in self.memory.untold:
            self.note(run)
        self.reporter.begin()
        self.change()

    async def _adopt(self) -> None:
        """Take over the instances that live, and learn what became of those that did."""
        known = {each.name: each for each in self._manifest().processes}
        names = {record.name for record in processes.live(self.places.records)} | set(self.memory.lives)
        for name in sorted(names):
            word, _, number = name.rpartition("-")
            record = self.places.records / name
            try:
                kept = await self.node.processes.adopt(record)
            except NotStarted as error:
                log.error("an instance is stuck", extra={"app": self.app.instance_id, "why": str(error)})
                continue
            process = known.get(word.lstrip("~"))
            if (
                word.startswith("~") or process is None or not number.isdecimal()
            ):  # a check, or of no process any more
                if kept is not None:
                    kept.kill()
                    await kept.ended
                continue
            instance = self.add(process, int(number))
            remembered = self.memory.lives.get(name)
            if remembered is not None:
                instance.life.recall(remembered, time.monotonic())
            was = instance.life.state
            if kept is not None:
                instance.adopt(kept, was=was)
            elif remembered is not None and remembered["alive"] and was is not State.STOPPING:
                instance.miss()
            elif was in ALIVE:
                instance.life.wanted, instance.life.state = False, State.STOPPED
            if process.type == "scheduled":
                begun_ms = kept.started_ms if kept is not None else instance.started_ms
                self.runs.adopt(instance, begun_ms, self.memory.triggers.get(name, 0))

    async def close(self, *, remember: bool = True) -> None:
        """Leave it as it is: its processes go on without us."""
        for task in self._lives.values():
            task.cancel()
        await asyncio.gather(*self._lives.values(), return_exceptions=True)
        await self.reporter.close()
        for instance in self.instances.values():
            await instance.close()
        if remember:
            self._remember()
        if self._emitting is not None:
            await self._emitting.close()

    def measured(self, usage: Mapping[str, Usage]) -> bool:
        """Take note of what its instances use, by their names; answers whether they use anything."""
        before = any(each.usage is not None for each in self.instances.values())
        for instance in self.instances.values():
            instance.measured(usage.get(instance.name))
        if usage or before:  # of what stands still there is nothing new to tell
            self.reporter.measured()
        return bool(usage)

    # What shall be

    def desire(self, app: App) -> None:
        """Take up a wish, unless it is older than the one before: whoever can write to Redis could put that back."""
        if app.age < self.app.age:
            log.error(
                "an older wish was refused", extra={"app": app.instance_id, "generation": app.generation}
            )
            return
        if self.memory.held_back is not None and app.generation > self.memory.held_back:
            self.memory.held_back = None
        if self.override is not None and app.phase != "updating":
            self.override = None
        self.app = app
        self.reconcile()

    def act_on(self, app: App) -> None:
        """Act on what a job asks for: beside the wish while that is being updated, else as the new wish."""
        self.taken_up = True
        if self.app.phase == "updating":
            self.override = app
            self.reconcile()
        else:
            self.desire(app)

    @property
    def held(self) -> bool:
        """Tell whether nothing of it shall run for now, whatever is wished."""
        return self.node.holding[self.app.instance_id] > 0 or self.memory.held_back is not None

    @property
    def alive(self) -> bool:
        """Tell whether anything of it lives."""
        return any(each.lives for each in self.instances.values())

    async def stopped(self) -> None:
        """Return once nothing of it lives, and that is remembered: whoever comes after us must not see a crash."""
        while self.alive:
            await self.changed.wait()
        self._remember()

    def reconcile(self) -> None:
        """Tell every instance what is wished of it now."""
        wish, held = self.wish, self.held
        wanted_keys = self._wanted = set[tuple[str, int]]()
        release = self._release()
        self.runs.keep_only({each.name for each in wish.processes})
        for process in wish.processes if release is not None else ():
            wanted = wish.wanted(process)
            running = wanted.running and not held
            before = self.memory.acted_on.get(process.name)
            self.memory.acted_on[process.name] = wanted.restarts
            again = before is not None and wanted.restarts > before
            if process.type == "scheduled":
                known = process.name in self.memory.timetables
                wanted_keys |= self.runs.wish(process, wanted, known=known)
                continue
            for index in range((1 if process.type == "oneshot" else wanted.scale) if running else 0):
                wanted_keys.add((process.name, index))
                instance = self.instances.get((process.name, index)) or self.add(process, index)
                instance.redefine(process)
                if again or instance.is_of_another(release):
                    instance.replace()
                instance.want(True)
            if process.type == "oneshot":
                self._rerun(process, wanted.triggers, running=running)
        for key, instance in list(self.instances.items()):
            if key not in wanted_keys:
                instance.want(False)
        self._drop_the_gone()
        self.change()

    def _rerun(self, process: Process, triggers: int, *, running: bool) -> None:
        """Run a oneshot process again that was triggered since."""
        acted_on = self.memory.acted_on.get(f"{process.name} triggers")
        self.memory.acted_on[f"{process.name} triggers"] = triggers
        instance = self.instances.get((process.name, 0))
        if running and acted_on is not None and triggers > acted_on and instance is not None:
            self._asked_for.add(process.name)
            instance.replace()

    def _ended(self, instance: Instance, ended: Ended, started_ms: int, ended_ms: int) -> None:
        """Keep the run of a oneshot process that has ended."""
        name = instance.process.name
        if instance.process.type != "oneshot":
            return
        # one that was stopped to be run again was not yet the run that was asked for
        asked = name in self._asked_for and instance.life.state is not State.STARTING
        if asked:
            self._asked_for.discard(name)
        run_id = f"{self.app.instance_id}/{instance.name}/{started_ms}"
        cause = "trigger" if asked else "start"
        self.note(
            Run(run_id, name, instance.index, started_ms, ended_ms, ended.exit_code, ended.signal, cause)
        )

    def note(self, run: Run) -> None:
        """Keep a run that has ended in the history."""
        self.reporter.note(run)

    def _release(self) -> str | None:
        try:
            return self.places.release().name
        except HostlerError:
            return None

    def _drop_the_gone(self) -> None:
        """Forget instances that nobody wishes for and that have ended; the first of each process is still shown."""
        known = {
            each.name: self.wish.wanted(each).scale
            for each in self.wish.processes
            if each.type != "scheduled"
        }
        for key, instance in list(self.instances.items()):
            if key in self._wanted or key in self.runs.under_way or instance.lives:
                continue
            if key[1] >= max(1, known.get(key[0], 0)) or key[0] not in known:
                self.remove(key)

    def can_start(self) -> bool:
        """Tell whether there is a release to start."""
        return self._release() is not None

    def add(self, process: Process, index: int) -> Instance:
        """Make an instance, which lives from now on."""
        key = (process.name, index)
        instance = self.instances[key] = Instance(self._around, process, index)
        self._lives[key] = asyncio.get_running_loop().create_task(instance.live())
        return instance

    def remove(self, key: tuple[str, int]) -> None:
        """Drop an instance that has ended."""
        self._lives.pop(key).cancel()
        del self.instances[key]

    def look_again(self) -> None:
        """Look at once whether what kept instances from starting has gone."""
        for instance in self.instances.values():
            instance.look_again()

    def outcome(self, names: Collection[str]) -> tuple[bool, Instance | None]:
        """Tell whether what is wished of these processes is so, and which instance has failed to become so.

        Of several it is the one to blame, not one that depends on it.
        """
        done, blocked = True, None
        for process in self.wish.processes:
            if process.name not in names or process.type == "scheduled":
                continue
            wanted = self.wish.wanted(process)
            count = (
                (1 if process.type == "oneshot" else wanted.scale) if wanted.running and not self.held else 0
            )
            for (name, index), instance in self.instances.items():
                if name == process.name and index >= count and instance.lives:
                    done = False
            for index in range(count):
                found = self.instances.get((process.name, index))
                if found is None or found.life.next(time.monotonic()) is not None:
                    done = False
                elif found.life.blocked:
                    blocked = blocked or found
                elif found.life.state is State.FAILED:
                    return True, found
                elif found.life.state not in READY or not found.is_steady:
                    done = False
        return (True, blocked) if blocked is not None else (done, None)

    # What is told

    def shown(self) -> list[Shown]:
        """Return its instances as they are told of, in order."""
        return [self.instances[key].shown() for key in sorted(self.instances)]

    @property
    def message(self) -> str:
        """Return what is to be said of it as a whole."""
        if self.memory.held_back is not None:
            return "Its node was rebooted, and it does not start by itself."
        lives = [each.life for each in self.instances.values() if each.life.state is not State.STOPPED]
        lives.sort(
            key=lambda life: (life.state is not State.FAILED, bool(life.blocked))
        )  # who is to blame, first
        return next((each.message for each in lives if each.message), "")

    async def _tell(self) -> None:
        self._drop_the_gone()
        self._remember()
        await self.node.control.observe(self.app, self.shown(), self.runs.shown(), self.message)

    def _remember(self) -> None:
        self.memory.wish, self.memory.phase = self.app.wish, self.app.phase.value
        self.memory.lives = {each.name: each.remembered() for each in self.instances.values()}
        self.memory.timetables, self.memory.triggers = self.runs.remembered(), self.runs.triggers()
        self.memory.untold = list(self.reporter.untold)
        try:
            self.memory.write(self.places.state)
        except OSError as error:  # the records of what lives do not depend on it
            log.warning("cannot remember", extra={"app": self.app.instance_id, "why": str(error)})


def remembered(apps_dir: Path, seal: Seal) -> list[tuple[App, Memory]]:
    """Return the apps that were supervised below `apps_dir`, as they were left."""
    found = []
    for path in sorted(apps_dir.glob("*/state.json")):
        memory = state.read(path)
        app = memory.app(seal, path.parent.name) if memory is not None else None
        if memory is not None and app is not None:
            found.append((app, memory))
    return found
