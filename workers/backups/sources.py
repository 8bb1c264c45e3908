"""What a backup reads on its node: paths, the data of apps, volumes of Docker, and the dumps that commands make."""

import asyncio
import contextlib
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from settings import process_environment
from storage.backups import shown_source
from storage.errors import Conflict, HostlerError, NotFound
from workers import startup
from workers.backups.process import Programs
from workers.supervisor.places import Places


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
    docker = shutil.which("docker")
    if docker is None:
        raise NotFound(f"The volume {volume!r} is Docker's, and this node has no docker.")
    argv = [docker, "volume", "inspect", "--format", "{{.Mountpoint}}", "--", volume]
    said = bytearray()
    await ran(programs, argv, f"docker volume inspect {volume}", directory=directory, take=said.extend)
    path = said.decode("utf-8", "replace").strip()
    if not path.startswith("/"):
        raise Conflict(f"The volume {volume!r} does not lie in a directory of this node.")
    return Path(path)


# Commands


def command_environment(**more: str) -> dict[str, str]:
    """Return what commands of a backup get: nothing of Hostler's own."""
    home = process_environment().get("HOME")
    return {**startup.inherited(), **({"HOME": home} if home else {}), **more}


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
        async with contextlib.aclosing(process.output()) as pieces:
            async for channel, data in pieces:
                if channel == "o":
                    take(data)
                    continue
                for line in data.decode("utf-8", "replace").splitlines():
                    process.tail.append(line)
                    complain(line)
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
    argv: list[str]
    environment: dict[str, str]
    filename: str


def _option(source: Mapping[str, Any], **names: str) -> list[str]:
    return [f"{flag}={source[name]}" for name, flag in names.items() if name in source]


def _postgresql(source: Mapping[str, Any], password: str) -> _Dump:
    reach = _option(source, host="--host", port="--port", user="--username")
    environment = {"PGPASSWORD": password} if password else {}
    if "database" in source:
        argv = ["pg_dump", "--format=custom", "--no-password", *reach, f"--dbname={source['database']}"]
        return _Dump(argv, environment, f"{source['name']}.dump")
    return _Dump(["pg_dumpall", "--no-password", *reach], environment, f"{source['name']}.sql")


def _mysql(source: Mapping[str, Any], password: str) -> _Dump:
    reach = _option(source, host="--host", port="--port", user="--user")
    what = ["--databases", str(source["database"])] if "database" in source else ["--all-databases"]
    argv = ["mysqldump", *reach, "--single-transaction", "--routines", "--triggers", "--events", *what]
    return _Dump(argv, {"MYSQL_PWD": password} if password else {}, f"{source['name']}.sql")


def _redis(source: Mapping[str, Any], password: str) -> _Dump:
    reach = [
        word
        for name, flag in (("host", "-h"), ("port", "-p"), ("user", "--user"))
        if name in source
        for word in (flag, str(source[name]))
    ]
    environment = {"REDISCLI_AUTH": password} if password else {}
    return _Dump(["redis-cli", *reach, "--rdb", "-"], environment, f"{source['name']}.rdb")


def _command(source: Mapping[str, Any], _: str) -> _Dump:
    return _Dump(["/bin/sh", "-c", str(source["command"])], {}, str(source["name"]))


_DUMPS: Mapping[str, Callable[[Mapping[str, Any], str], _Dump]] = {
    "postgresql": _postgresql, "mysql": _mysql, "redis": _redis, "command": _command,
}  # fmt: skip


async def dumped(
    source: Mapping[str, Any], password: str, programs: Programs, directory: Path, say: Callable[[str], None]
) -> Path:
    """Make the dump of a source in `directory`, and return its file. Raises CommandFailed, OSError."""
    dump = _DUMPS[str(source["type"])](source, password)
    argv = dump.argv
    if (
        "container" in source
    ):  # a name alone takes its value from the environment: no secret in a process list
        names = [word for name in dump.environment for word in ("--env", name)]
        argv = ["docker", "exec", *names, str(source["container"]), *argv]
    if shutil.which(argv[0]) is None:
        raise NotFound(f"This node has no {argv[0]}, which makes the dump {source['name']!r}.")
    say(f"dumps {source['name']}")
    target = directory / dump.filename
    with target.open("xb") as file:
        await ran(
            programs, argv, f"The dump {source['name']!r}", directory=directory,
            environment=command_environment(**dump.environment), take=_written(file), complain=say,
        )  # fmt: skip
    return target


def _written(file: BinaryIO) -> Callable[[bytes], object]:
    return file.write
