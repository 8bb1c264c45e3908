"""`hostler up`: web, workers, scheduler and, where none is given, Redis and S3, all on this machine."""

import asyncio
import contextlib
import importlib
import importlib.util
import json
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO, TypeVar

import psutil

from cli.embedded import Server, is_well, redis_server, s3_server, write_private
from cli.processes import Process, Processes
from settings import BadSettings, Listener, Settings
from storage.errors import Conflict, HostlerError, Invalid, NotConfigured, Unavailable

if sys.platform != "win32":
    import fcntl

T = TypeVar("T")

READY_WITHIN_S = 120.0
ENDS_BEFORE_GIVING_UP = 3
LEFTOVERS_WITHIN_S = 30.0
POLL_S = 0.05
HURRY_AFTER_S = 1.0  # `timeout` sends its signal twice at once; a person's second Ctrl+C comes later
FIRST_ADMIN = "admin@localhost"
LINK_S = 15 * 60  # an address that signs in is good for so long, once

#: Makes the bucket and the first admin (`email`, `password`, `api_key`); None where there are users already.
Prepare = Callable[[Settings], Awaitable[Any]]
#: Names the processes to run, given the number of workers and the environment.
Specify = Callable[[int, Mapping[str, str]], list[Process]]


async def make_bucket_and_admin(settings: Settings) -> Any:
    """Do what storage/bootstrap.py does, whose code is read while the servers start."""
    return await (await _read_bootstrap()).prepare(settings)


async def _read_bootstrap() -> Any:
    return await asyncio.to_thread(importlib.import_module, "storage.bootstrap")


def up(
    *,
    port: int,
    data: Path,
    workers: int,
    host: str = "127.0.0.1",
    listen: Sequence[str] = (),
    keep_apps: bool = False,
    environ: Mapping[str, str],
    prepare: Prepare = make_bucket_and_admin,
    specify: Specify | None = None,
    output: TextIO | None = None,
) -> int:
    """Run Hostler until SIGINT or SIGTERM, with its data in the folder `data`, and return the exit code.

    Port 0 chooses a free one, in `listen` too (`cbox=127.0.0.1:9180`: a port that speaks one dialect alone).
    Apps end with it unless `keep_apps`, which leaves them to the next `up` on the same folder.
    `specify` is `hostler_processes` unless given. Call it from the main thread.
    """
    output = output or _standard_output()
    if sys.platform == "win32":
        print("hostler up needs Linux or macOS; a Windows machine can run hostler agent.", file=output)
        return 1
    data = data.absolute()
    try:
        # 0711: users that jobs run as pass through to their own directory, and list and read nothing here
        data.mkdir(mode=0o711, parents=True, exist_ok=True)
        with _only_one(data, output) as lock:
            port = _free_port(host, port)
            environ = _environment(environ, data=data, host=host, port=port)
            if listen:
                environ["HOSTLER_LISTEN"] = ",".join(
                    [environ.get("HOSTLER_LISTEN", ""), *_free_ports(listen)]
                )
            if output.isatty():
                environ.setdefault("HOSTLER_LOG_FORMAT", "text")
            Settings.from_env(environ)  # says what is wrong before anything starts
            stack = _Stack(
                data=data,
                url=f"http://{_reachable(host)}:{port}",
                output=output,
                processes=Processes(output, colour=output.isatty() and not environ.get("NO_COLOR")),
                servers=_embedded(data, environ, lock),
                keep_apps=keep_apps,
            )
            specify = specify or hostler_processes
            return asyncio.run(_until_told_to_stop(stack, workers, environ, prepare, specify))
    except (HostlerError, BadSettings) as error:
        print(error, file=output, flush=True)
    except OSError as error:
        print(f"Cannot start in {data}: {error.strerror or error}.", file=output, flush=True)
    return 1


def with_servers(
    data: Path, environ: Mapping[str, str], work: Callable[[Settings], Awaitable[T]], *, output: TextIO
) -> T:
    """Do `work` on the servers of the folder `data`, started for that alone. Raises Conflict while `up` runs."""
    data = data.absolute()
    if not data.is_dir():
        raise Invalid(f"{data} is not a folder of hostler up.")
    with _only_one(data, output) as lock:
        known = _environment(environ, data=data, host="127.0.0.1", port=0)
        processes = Processes(output)
        servers = _embedded(data, known, lock)
        stack = _Stack(data=data, url="", output=output, processes=processes, servers=servers, keep_apps=True)

        async def between() -> T:
            try:
                for server in servers:
                    processes.start(server.process)
                for server in servers:
                    await stack.until(f"{server.process.name} answers", server.answers)
                return await work(Settings.from_env(known))
            finally:
                await processes.stop()

        return asyncio.run(between())


def _standard_output() -> TextIO:
    """Return where to print to, and fill the standard descriptors that the caller closed.

    Otherwise the next file or pipe that is opened takes their numbers, which children replace by their own.
    """
    while (filler := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(filler)
    return sys.stdout or open(os.devnull, "w")


def hostler_processes(workers: int, environ: Mapping[str, str]) -> list[Process]:
    """Return web, `workers` workers and the scheduler, as the Procfile has them."""
    spec = importlib.util.find_spec("api")
    if spec is None or spec.origin is None:
        raise NotConfigured("The package 'api' is not installed beside this command.")
    api = Path(spec.origin).parent
    settings = Settings.from_env(environ)
    node = socket.gethostname()
    # -P: a folder named like one of our packages, wherever the command was typed, must not take its place.
    python = (sys.executable, "-P", "-m")
    commands: dict[str, tuple[str, ...]] = {
        "web": (*python, "gunicorn", "-c", str(api / "gunicorn.py"), "api.asgi:app"),
        **{f"worker-{n}": (*python, "workers", "--name", f"{node}-{n}") for n in range(1, workers + 1)},
        "scheduler": (*python, "scheduler"),
    }
    return [
        Process(
            name=name,
            command=command,
            environ=environ,
            cwd=api.parent,  # gunicorn puts its working directory before everything that is installed
            grace_s=settings.drain_s + settings.kill_grace_s + 2 if name.startswith("worker-") else 25.0,
        )
        for name, command in commands.items()
    ]


@dataclass(frozen=True, kw_only=True)
class _Stack:
    data: Path
    url: str
    output: TextIO
    processes: Processes
    servers: list[Server]
    keep_apps: bool

    def say(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody reads us any more, which is no reason to end
            print(text, file=self.output, flush=True)

    async def until(
        self,
        what: str,
        condition: Callable[[], Awaitable[bool]],
        loads: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        """Wait for `condition`, and as long as it takes while it `loads`.

        Raises Unavailable when a process keeps ending, or the time is over.
        """
        deadline, told = time.monotonic() + READY_WITHIN_S, False
        while not await condition():
            if loads is not None and await loads():
                deadline = time.monotonic() + READY_WITHIN_S
                if not told:
                    self.say("Redis reads its data; the more it keeps, the longer that takes.")
                told = True
            name, ends = self.processes.most_ends()
            if ends >= ENDS_BEFORE_GIVING_UP:
                raise Unavailable(f"'{name}' ended {ends} times before {what}; its own words are above.")
            if time.monotonic() > deadline:
                raise Unavailable(f"After {READY_WITHIN_S:g} s it is still not so that {what}.")
            await asyncio.sleep(POLL_S)


async def _until_told_to_stop(
    stack: _Stack, workers: int, environ: Mapping[str, str], prepare: Prepare, specify: Specify
) -> int:
    loop = asyncio.get_running_loop()
    work = asyncio.create_task(_run(stack, workers, environ, prepare, specify))
    asked: list[float] = []

    def interrupt() -> None:
        asked.append(time.monotonic())
        work.cancel()
        if asked[-1] - asked[0] > HURRY_AFTER_S:
            stack.processes.hurry()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup asked for it
            loop.add_signal_handler(number, interrupt)
    try:
        await work
    except asyncio.CancelledError:
        stack.say("Stopping. Running jobs are given a moment; once more to stop at once.")
    finally:
        await stack.processes.stop()
        if not stack.keep_apps and any(Settings.from_env(environ).apps_dir.glob("*/records")):
            await stack.processes.finish(*(_stop_apps(environ, *flags) for flags in ((), ("--at-once",))))
    return 0


def _stop_apps(environ: Mapping[str, str], *flags: str) -> Process:
    """Return what ends the apps, which outlive the workers that started them."""
    command = (sys.executable, "-P", "-m", "workers", "--stop-apps", *flags)
    return Process(name="apps", command=command, environ=environ, cwd=Path(__file__).parents[1])


async def _run(
    stack: _Stack, workers: int, environ: Mapping[str, str], prepare: Prepare, specify: Specify
) -> None:
    for server in stack.servers:
        stack.processes.start(server.process)
    reading = asyncio.create_task(_read_bootstrap()) if prepare is make_bucket_and_admin else None
    # Hostler's own processes want Redis when they start; they read their code while S3 is still about to answer
    for server in stack.servers:
        if server.process.name == "redis":
            await stack.until("redis answers", server.answers, server.loads)
    for process in specify(workers, environ):
        stack.processes.start(process)
    for server in stack.servers:
        await stack.until(f"{server.process.name} answers", server.answers)
    if reading is not None:
        await reading
    await _first_admin(stack.data, stack.url, Settings.from_env(environ), prepare)
    await stack.until("Hostler is ready", lambda: is_well(f"{stack.url}/api/health/ready", within_s=5))
    settings = Settings.from_env(environ)
    link = await _sign_in_link(stack, settings) if reading is not None else ""
    stack.say(
        f"\nHostler is ready at {stack.url}\n"
        + (
            f"Open it, signed in once within {LINK_S // 60} minutes: {link}\n"
            if stack.output.isatty()
            else ""
        )
        + "".join(f"{settings.announcement(listener)}\n" for listener in settings.listen)
        + f"Sign in with what {stack.data / 'admin.json'} holds; Ctrl+C, or SIGTERM to process {os.getpid()}, "
        + ("stops everything but apps.\n" if stack.keep_apps else "stops everything.\n")
    )
    await asyncio.Event().wait()


async def _sign_in_link(stack: _Stack, settings: Settings) -> str:
    """Return an address that signs an admin in once; a file keeps it too, for those who see no terminal."""
    from storage import handoffs  # noqa: PLC0415  as in _read_bootstrap
    from storage.store import Store  # noqa: PLC0415  as above

    store = Store(settings)
    try:
        token = await handoffs.of_admin(store, lasts_s=LINK_S)
    finally:
        await store.close()
    link = f"{stack.url}/#/enter?token={token}" if token else stack.url
    write_private(stack.data / "sign-in-url", f"{link}\n")
    return link


async def _first_admin(data: Path, url: str, settings: Settings, prepare: Prepare) -> None:
    """Have the bucket and the first admin made, and keep what opens the door in admin.json.

    An invented password is on the disk before the admin exists, so that dying in between locks nobody out.
    """
    path, invented = data / "admin.json", data / "first-admin-password"
    interrupted = invented.exists()
    settings = replace(settings, admin_email=settings.admin_email or FIRST_ADMIN)
    if not settings.admin_password:
        if not interrupted:
            write_private(invented, secrets.token_urlsafe(18))
        settings = replace(settings, admin_password=invented.read_text())
    made = await prepare(settings)
    known: dict[str, Any] | None = None
    if made is not None:
        known = {"email": made.email, "password": made.password, "apiKey": made.api_key}
    elif path.exists():
        known = json.loads(path.read_text())
    elif interrupted:
        known = {"email": settings.admin_email, "password": settings.admin_password, "apiKey": None}
    if known is not None:
        shown = {"url": url, **{name: known[name] for name in ("email", "password", "apiKey")}}
        write_private(path, json.dumps(shown, indent=2) + "\n")
    invented.unlink(missing_ok=True)


def _embedded(data: Path, environ: dict[str, str], lock: int) -> list[Server]:
    """Prepare the servers that nobody named in `environ`, and name them there.

    They inherit the lock: while one outlives a killed parent, no other may start on its data.
    """
    servers = []
    for field, prepare in (("redis_url", redis_server), ("s3_endpoint_url", s3_server)):
        if not any(environ.get(name) or environ.get(f"{name}_FILE") for name in _variables(field)):
            server = prepare(data, pass_fds=(lock,))
            for name, value in server.environ.items():
                environ.pop(f"{name}_FILE", None)
                environ[name] = value
            servers.append(server)
    environ["S3_BUCKET"] = Settings.from_env(environ).s3_bucket
    return servers


def _variables(field: str) -> list[str]:
    return list(Settings.__dataclass_fields__[field].metadata["names"])


def _environment(environ: Mapping[str, str], *, data: Path, host: str, port: int) -> dict[str, str]:
    """Return the environment of the processes, but for the embedded servers."""
    result = dict(environ)
    # The processes run in another directory, so a file named relative to this one needs its whole path.
    for field in Settings.__dataclass_fields__:
        for name in _variables(field):
            if named := result.get(f"{name}_FILE"):
                result[f"{name}_FILE"] = str(Path(named).absolute())
    result |= {"HOSTLER_HOST": host, "PORT": str(port), "PYTHONUNBUFFERED": "1"}
    result["HOSTLER_WORK_DIR"] = str(Path(result.get("HOSTLER_WORK_DIR") or data / "work").absolute())
    if not result.get("HOSTLER_SECRET_KEY") and not result.get("HOSTLER_SECRET_KEY_FILE"):
        path = data / "secret_key"
        if not path.exists():
            write_private(path, secrets.token_urlsafe(48))
        result["HOSTLER_SECRET_KEY_FILE"] = str(path)
    return result


@contextlib.contextmanager
def _only_one(data: Path, output: TextIO) -> Iterator[int]:
    """Hold the lock of `data`, and yield its descriptor. Raises Conflict when somebody else holds it."""
    lock = os.open(data / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + LEFTOVERS_WITHIN_S
        told = False
        while not _locked(lock):
            holder = os.pread(lock, 20, 0).decode().strip()
            if not holder or psutil.pid_exists(int(holder)):
                raise Conflict(f"{data} is in use by another hostler up, process {holder or 'unknown'}.")
            if time.monotonic() > deadline:
                raise Conflict(
                    f"{data} is in use by servers that process {holder} started; it is gone, they are not."
                )
            if not told:
                print(f"Waiting for the servers of process {holder} to end.", file=output, flush=True)
                told = True
            time.sleep(POLL_S)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        yield lock
    finally:
        os.close(lock)


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _free_port(host: str, port: int) -> int:
    """Return `port`, or a free one for 0. Raises Conflict when it cannot be listened on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family) as probe:
            return int(probe.getsockname()[1])
    except OSError as error:
        raise Conflict(f"Cannot listen on {host} port {port}: {error.strerror or error}.") from error


def _free_ports(listen: Sequence[str]) -> list[str]:
    """Return what is to be listened on, with a port that is free. Raises Conflict, or Invalid."""
    found = []
    for word in listen:
        try:
            listener = Listener.parse(word)
        except ValueError as error:
            raise Invalid(f"--listen: {error}.") from None
        found.append(str(replace(listener, port=_free_port(listener.host, listener.port))))
    return found


def _reachable(host: str) -> str:
    """Return how this machine itself reaches a server that listens on `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  asks, does not bind
    return f"[{host}]" if ":" in host else host
