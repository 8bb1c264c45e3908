"""`python -m workers.agent`: the reference agent, a worker that needs nothing but outbound HTTP(S).

It runs on Linux, macOS and Windows; a registration outlives it in its work directory, so that it comes back at once.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from integrations.logging import to_stderr
from settings import BadSettings, Settings, __version__, is_loopback, process_environment
from storage import cause
from storage.errors import Conflict, HostlerError, Unauthenticated, Unavailable
from workers import startup
from workers.control_plane import ControlPlane, Enrolment, TokenFile
from workers.http_line import HttpLine
from workers.log import log
from workers.platforms import Platform

RETRY_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What an agent is told on its command line."""

    url: str
    name: str
    tags: tuple[str, ...]
    slots: int
    ca_file: Path | None
    ephemeral: bool
    api_key: str | None


async def work(settings: Settings, options: Options) -> None:
    """Register, run jobs until SIGINT or SIGTERM, and drain.

    Raises Denied or Unauthenticated without a right to register, Invalid for what the API does not take, Conflict
    while another agent of this name uses the same work directory, and IsolationUnavailable.
    """
    with (
        startup.workplace(settings, name=options.name, slots=options.slots) as place,
        _alone(place.root, options.name),
    ):
        api = ControlPlane(
            options.url,
            _enrolment(settings, options, place.platform),
            token_file=TokenFile(place.root / "registration.json"),
            ca_file=options.ca_file,
        )
        try:
            await _register(api)
            place.platform.forget_obituaries()  # the API takes none
            line = HttpLine(api)
            await place.work(line, heartbeat_s=settings.heartbeat_s, stopping=line.stop_polling)
            await _leave(api, line, ephemeral=options.ephemeral)
        finally:
            await api.close()


async def _register(api: ControlPlane) -> None:
    """Register, waiting while the API is away or an earlier registration of this name still counts as online."""
    said = ""
    while True:
        try:
            await api.register()
            return
        except (Unavailable, Conflict) as error:
            if str(error) != said:
                said = str(error)
                log.warning("cannot register for now", extra={"worker": api.name, "why": said})
        await asyncio.sleep(RETRY_S)


async def _leave(api: ControlPlane, line: HttpLine, *, ephemeral: bool) -> None:
    try:
        await line.depart("stopped")
        if ephemeral:
            await api.forget()
    except HostlerError as error:
        log.warning("left without a word", extra={"why": str(error)})


def _enrolment(settings: Settings, options: Options, platform: Platform) -> Enrolment:
    facts = {
        "hostname": socket.gethostname(), "cpuCount": os.cpu_count() or 1, "slots": options.slots,
        "tags": list(options.tags), "version": __version__, "isolation": platform.isolation,
        "metadata": startup.metadata(platform, options.tags),
        "totalMemoryMb": startup.memory_mb() or None,
    }  # fmt: skip
    return Enrolment(name=options.name, facts=facts, secret=settings.enroll_secret, api_key=options.api_key)


@contextlib.contextmanager
def _alone(root: Path, name: str) -> Iterator[None]:
    """Hold the work directory for this process: two of one name would take each other's token and directories.

    Raises Conflict.
    """
    with (root / "lock").open("ab") as file:
        try:
            if sys.platform == "win32":
                import msvcrt  # noqa: PLC0415  Windows alone has it

                file.seek(0)
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl  # noqa: PLC0415  Windows has it not

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Conflict(f"Another agent named {name!r} works in {root}.") from error
        yield  # closing the file lets go of it


def _options(settings: Settings) -> tuple[Options, Path]:
    environment = process_environment()
    parser = argparse.ArgumentParser(
        prog="hostler agent",
        description="Run jobs on this machine for a Hostler elsewhere, over outbound HTTP(S) alone.",
        epilog="The right to register is HOSTLER_ENROLL_SECRET or an operator's HOSTLER_API_KEY. Proxies are taken "
        "from HTTPS_PROXY, HTTP_PROXY and NO_PROXY.",
    )
    parser.add_argument("--url", default=environment.get("HOSTLER_URL"), help="where Hostler's API is")
    parser.add_argument("--name", default=socket.gethostname(), help="default: this machine's (%(default)s)")
    parser.add_argument(
        "--tags", default=",".join(settings.tags), help="what this machine has, comma-separated"
    )
    parser.add_argument(
        "--slots", type=int, default=settings.slots, help="jobs at once (default: %(default)s)"
    )
    parser.add_argument(
        "--work-dir", type=Path, default=settings.work_dir, help="where jobs run (default: %(default)s)"
    )
    parser.add_argument(
        "--ca-file", type=Path, help="PEM file of an authority to trust beside the public ones"
    )
    parser.add_argument("--ephemeral", action="store_true", help="leave the list of workers at the end")
    given = parser.parse_args()
    url = urlsplit(given.url or "")
    if url.scheme not in {"http", "https"} or not url.hostname:
        parser.error("--url (or HOSTLER_URL) must name Hostler's API, such as https://hostler.example.org")
    if problem := startup.problem_with_name(given.name):
        parser.error(problem)
    if given.slots < 1:
        parser.error("--slots must be 1 or more")
    if given.ca_file is not None and not given.ca_file.is_file():
        parser.error(f"--ca-file: there is no file {given.ca_file}")
    options = Options(
        url=given.url, name=given.name, slots=given.slots, ca_file=given.ca_file, ephemeral=given.ephemeral,
        tags=tuple(sorted({tag.strip() for tag in given.tags.split(",") if tag.strip()})),
        api_key=environment.get("HOSTLER_API_KEY"),
    )  # fmt: skip
    return options, given.work_dir.absolute()


def main() -> int:
    """Run an agent until it is told to stop; answers the exit status."""
    try:
        settings = Settings.from_env()
    except BadSettings as error:
        print(error, file=sys.stderr)
        return 2
    options, work_dir = _options(settings)
    to_stderr(form=settings.log_format, level=settings.log_level, about=cause.for_log)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs a line for each request
    if options.url.startswith("http://") and not is_loopback(urlsplit(options.url).hostname or ""):
        log.warning("without TLS, anybody on the way can read and change what this agent runs")
    try:
        startup.run(work(replace(settings, work_dir=work_dir), options))
    except KeyboardInterrupt:  # before there was anything to drain
        return 130
    except (HostlerError, OSError) as error:
        print(f"hostler agent: {error}", file=sys.stderr)
        if isinstance(error, Unauthenticated) and not (settings.enroll_secret or options.api_key):
            print("Set HOSTLER_ENROLL_SECRET or HOSTLER_API_KEY.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
