"""What a backup reads on its node: paths, the data of apps, volumes of Docker, and the dumps that commands make."""

import asyncio
import contextlib
import os
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from settings import process_environment
from storage.backups import shown_source
from storage.errors import Conflict, HostlerError, NotFound
from workers import startup
from workers.backups.process import Programs
from workers.supervisor.places import Places

#: By these, besides what all commands get, programs find a user's settings and the daemon of Docker.
REACHING = (
    "HOME", "DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "DOCKER_CERT_PATH", "DOCKER_TLS_VERIFY",
    "XDG_RUNTIME_DIR",
)  # fmt: skip
#: Of what a program complains about without ever ending the line, so much is kept.
LONGEST_LINE_BYTES = 65_536


class CommandFailed(HostlerError):
    """A command of a backup did not end well; the message says which, and how."""

    code = "BACKUP_COMMAND_FAILED"


class Apps(Protocol):
    """What is asked of the supervisor."""

    def places(self, instance_id: str) -> Places:
        """Return where an app lies. Raises Invalid."""


@dataclass(frozen=True, slots=True)
class Found:
    """A source as it lies on this node: how people name it, and where it is."""

    name: str
    type: str
    path: Path

    @property
    def told(self) -> dict[str, str]:
        """Return what a record keeps of it."""
        return {"name": self.name, "type": self.type, "path": str(self.path)}


async def located(source: Mapping[str, Any], apps: Apps, programs: Programs, directory: Path) -> Found:
    """Return where a source that is files lies, whether or not it is there. Raises NotFound, Conflict."""
    kind, name = str(source["type"]), str(shown_source(source))
    if kind == "app":
        return Found(name, kind, apps.places(str(source["app"])).data)
    if kind == "volume":
        return Found(name, kind, await _mountpoint(str(source["volume"]), programs, directory))
    # what is meant is what a link leads to; to keep the link alone would be no backup
    return Found(name, kind, Path(await asyncio.to_thread(os.path.realpath, str(source["path"]))))


async def _mountpoint(volume: str, programs: Programs, directory: Path) -> Path:
    asked = ["volume", "inspect", "--format", "{{.Mountpoint}}", "--", volume]
    path = await _said_of(volume, asked, programs, directory)
    if not path.startswith("/"):
        raise Conflict(f"The volume {volume!r} does not lie in a directory of this node.")
    return Path(path)


async def check_unused(volume: str, programs: Programs, directory: Path) -> None:
    """Refuse a volume that running containers have mounted: they would go on with what was there. Raises Conflict."""
    asked = ["ps", "--filter", f"volume={volume}", "--format", "{{.Names}}"]
    names = (await _said_of(volume, asked, programs, directory)).split()
    if names:
        raise Conflict(
            f"The volume {volume!r} is in use, and containers would go on with what was there before; stop them first: "
            f"docker stop {' '.join(names)}"
        )


async def _said_of(volume: str, asked: list[str], programs: Programs, directory: Path) -> str:
    """Return what docker says of a volume. Raises NotFound, CommandFailed."""
    docker = shutil.which("docker")
    if docker is None:
        raise NotFound(f"The volume {volume!r} is Docker's, and this node has no docker.")
    said = bytearray()
    await ran(
        programs, [docker, *asked], shlex.join(["docker", *asked]), directory=directory, take=said.extend
    )
    return said.decode("utf-8", "replace").strip()


# Commands


def command_environment(**more: str) -> dict[str, str]:
    """Return what commands of a backup get: nothing of Hostler's own."""
    own = process_environment()
    return {**startup.inherited(), **{name: own[name] for name in REACHING if name in own}, **more}


async def ran(  # what runs, under which name, where, and who hears it
    programs: Programs,
    argv: list[str],
    name: str,
    *,
    directory: Path,
    environment: Mapping[str, str] | None = None,
    take: Callable[[bytes], object],
    complain: Callable[[str], None] = lambda _: None,
) -> None:
    """Run a program to its end; `take` gets what it prints. Raises CommandFailed, OSError from `take`."""
    given = command_environment() if environment is None else environment
    async with programs.started(argv, directory=directory, environment=given) as process:
        begun = b""

        def heard(line: bytes) -> None:
            process.tail.append(line.decode("utf-8", "replace").rstrip("\r"))
            complain(process.tail[-1])

        async with contextlib.aclosing(process.output()) as pieces:
            async for channel, data in pieces:
                if channel == "o":
                    take(data)
                    continue
                *whole, begun = (begun + data).split(b"\n")
                for line in whole:
                    heard(line)
                begun = begun[-LONGEST_LINE_BYTES:]
        if begun:
            heard(begun)
        outcome = process.outcome()
        if outcome.exit_code != 0:
            how = f"code {outcome.exit_code}" if outcome.signal is None else f"signal {outcome.signal}"
            last = next((each for each in reversed(process.tail) if each.strip()), "")
            raise CommandFailed(f"{name} ended with {how}" + (f": {last.strip()[:300]}" if last else "."))


async def hook(
    programs: Programs,
    command: str,
    name: str,
    *,
    directory: Path,
    say: Callable[[str], None],
    **environment: str,
) -> None:
    """Run a command of a shell; what it prints goes to the log. Raises CommandFailed."""
    say(f"runs {name}")

    def hear(data: bytes) -> None:
        for line in data.decode("utf-8", "replace").splitlines():
            say(line)

    await ran(
        programs, ["/bin/sh", "-c", command], name, directory=directory, environment=command_environment(**environment),
        take=hear, complain=say,
    )  # fmt: skip


# Dumps


@dataclass(frozen=True, slots=True)
class _Dump:
    """How a dump is made: a program, by the names it has where it is there, and its arguments.

    Its output is the dump, unless the program writes it itself to the file that is its last argument.
    """

    programs: tuple[str, ...]
    arguments: list[str]
    environment: dict[str, str]
    filename: str
    writes_file: bool = False

    def argv(self, target: Path) -> list[str]:
        """Return what to run on the node. Raises NotFound."""
        found = next(filter(None, map(shutil.which, self.programs)), None)
        if found is None:
            names = " or ".join(self.programs)
            raise NotFound(f"This node has no {names}, which makes the dump {target.name!r}.")
        return [found, *self.arguments, *([str(target)] if self.writes_file else [])]

    def argv_inside(self, container: str) -> list[str]:
        """Return what to run in a container; the file of a program that writes one is its output. Raises NotFound."""
        docker = shutil.which("docker")
        if docker is None:
            raise NotFound(f"This node has no docker, which reaches the container {container!r}.")
        # a name alone takes its value from the environment: no secret in a process list
        names = [word for name in self.environment for word in ("--env", name)]
        program = [self.programs[0]]
        if len(self.programs) > 1:
            which = " || ".join(f"command -v {each}" for each in self.programs)
            program = ["sh", "-c", f'exec "$({which} || echo {self.programs[0]})" "$@"', "sh"]
        output = ["-"] if self.writes_file else []
        return [docker, "exec", *names, container, *program, *self.arguments, *output]


def _option(source: Mapping[str, Any], **names: str) -> list[str]:
    return [f"{flag}={source[name]}" for name, flag in names.items() if name in source]


def _postgresql(source: Mapping[str, Any], password: str) -> _Dump:
    reach = _option(source, host="--host", port="--port", user="--username")
    environment = {"PGPASSWORD": password} if password else {}
    if "database" in source:
        arguments = ["--format=custom", "--no-password", *reach, f"--dbname={source['database']}"]
        return _Dump(("pg_dump",), arguments, environment, f"{source['name']}.dump")
    return _Dump(("pg_dumpall",), ["--no-password", *reach], environment, f"{source['name']}.sql")


def _mysql(source: Mapping[str, Any], password: str) -> _Dump:
    host = "--socket" if str(source.get("host", "")).startswith("/") else "--host"
    reach = _option(source, host=host, port="--port", user="--user")
    if "port" in source:
        reach.append("--protocol=tcp")  # else localhost means a socket, and the port nothing
    what = ["--databases", str(source["database"])] if "database" in source else ["--all-databases"]
    how = [
        "--single-transaction", "--routines", "--triggers", "--events", "--hex-blob", "--default-character-set=utf8mb4",
        "--no-tablespaces",  # which would ask for the privilege PROCESS
    ]  # fmt: skip
    environment = {"MYSQL_PWD": password} if password else {}
    # MariaDB has the second name alone, from its release 11 on
    return _Dump(("mysqldump", "mariadb-dump"), [*reach, *how, *what], environment, f"{source['name']}.sql")


def _redis(source: Mapping[str, Any], password: str) -> _Dump:
    host = "-s" if str(source.get("host", "")).startswith("/") else "-h"
    reach = [
        word
        for name, flag in (("host", host), ("port", "-p"), ("user", "--user"))
        if name in source
        for word in (flag, str(source[name]))
    ]
    environment = {"REDISCLI_AUTH": password} if password else {}
    # to a file, which it cuts off where the data end; a pipe gets the server's end mark, too
    return _Dump(
        ("redis-cli", "valkey-cli"), [*reach, "--rdb"], environment, f"{source['name']}.rdb", writes_file=True
    )


def _command(source: Mapping[str, Any], _: str) -> _Dump:
    return _Dump(("/bin/sh",), ["-c", str(source["command"])], {}, str(source["name"]))


_DUMPS: Mapping[str, Callable[[Mapping[str, Any], str], _Dump]] = {
    "postgresql": _postgresql, "mysql": _mysql, "redis": _redis, "command": _command,
}  # fmt: skip


async def dumped(
    source: Mapping[str, Any], password: str, programs: Programs, directory: Path, say: Callable[[str], None]
) -> Path:
    """Make the dump of a source in `directory`, and return its file. Raises NotFound, CommandFailed, OSError."""
    dump = _DUMPS[str(source["type"])](source, password)
    target = directory / dump.filename
    argv = dump.argv_inside(str(source["container"])) if "container" in source else dump.argv(target)
    say(f"dumps {source['name']}")
    with open(target, "xb", opener=_private) as file:
        await ran(
            programs, argv, f"The dump {source['name']!r}", directory=directory,
            environment=command_environment(**dump.environment), take=file.write, complain=say,
        )  # fmt: skip
    return target


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)  # restored, too, it is for nobody else
