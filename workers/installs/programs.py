"""Programs that an install runs: the registries' clients as the worker itself, what a package brings kept apart.

The clients run nothing of what they fetch. Both kinds die with the worker, whatever it dies of, and with all that they
have started; what a killed guardian let live is swept by the job's id when the job comes again.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from settings import process_environment
from storage.errors import HostlerError
from workers.attended import Attended
from workers.platforms import Child, Outcome
from workers.platforms import Output as Pipe

READ_BYTES = 64 * 1024
#: What is remembered of a program's output, to say why it failed.
TAIL_LINES = 40
KILL_GRACE_S = 5.0

#: What the clients are told by the node's environment: which registry, through which proxy, trusting whom.
_CLIENT_WORDS = ("PIP_", "NPM_CONFIG_", "UV_")
_CLIENT_NAMES = {
    "PATH", "HOME", "USERPROFILE", "APPDATA", "LOCALAPPDATA", "SYSTEMROOT", "COMSPEC", "PATHEXT", "TEMP", "TMP",
    "LANG", "LC_ALL", "TZ", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "XDG_CONFIG_HOME", "XDG_CONFIG_DIRS", "NETRC",
}  # fmt: skip
#: What holds a credential, or leads to one: not for what a package brings.
_OWN_NAMES = {"HOME", "USERPROFILE", "APPDATA", "LOCALAPPDATA", "XDG_CONFIG_HOME", "NETRC", "TEMP", "TMP"}
_OWN_WORDS = ("_AUTH", "TOKEN", "PASSWORD", "USERCONFIG", "_CACHE", "CONFIG_FILE", "CLIENT_CERT")


class InstallFailed(HostlerError):
    """An install cannot go on; the message says why."""

    code = "INSTALL_FAILED"


def client_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return what the ordinary clients get of this process's environment: nothing of Hostler's own."""
    environ = process_environment() if environ is None else environ
    return {
        name: value
        for name, value in environ.items()
        if name.upper() in _CLIENT_NAMES or name.upper().startswith(_CLIENT_WORDS)
    }


def package_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return what an install step gets: the node's registries and proxies, without the credentials for them."""
    return {
        name: value
        for name, value in client_environment(environ).items()
        if name.upper() not in _OWN_NAMES
        and not any(word in name.upper() for word in _OWN_WORDS)
        and not ("://" in value and "@" in value.partition("://")[2].partition("/")[0])
    }


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended, and the last of what it said."""

    outcome: Outcome
    tail: str
    timed_out: bool = False

    @property
    def succeeded(self) -> bool:
        """Whether it exited with 0 in its time."""
        return self.outcome.exit_code == 0 and not self.timed_out

    @property
    def how(self) -> str:
        """Return in a few words how it ended."""
        if self.timed_out:
            return "took too long"
        if self.outcome.exit_code is None:
            return f"was ended by signal {self.outcome.signal}"
        return f"ended with exit code {self.outcome.exit_code}"


class Programs(Attended):
    """Runs one program at a time for the job `job_id`; what it says goes to `hear`, by channel o or e.

    `isolation` keeps programs apart as the platform can; "none" is for the worker's own clients. `readable` is what
    Landlock leaves open besides the system. Close it.
    """

    def __init__(
        self,
        isolation: str,
        job_id: str,
        *,
        hear: Callable[[str, bytes], None],
        readable: Iterable[Path] = (),
    ) -> None:
        super().__init__(isolation, job_id, readable=readable)
        self._hear = hear
        self._quiet = False

    @property
    def isolation(self) -> str:
        """What keeps the programs apart: "uid", "landlock" or "none"."""
        return self._platform.isolation

    def prepare(self, directory: Path) -> None:
        """Give a directory to the program that runs next. Raises IsolationUnavailable, OSError."""
        self._platform.prepare_directory(directory, 0)

    def reclaim(self, directory: Path) -> None:
        """Take a directory back. Raises OSError."""
        self._platform.reclaim_directory(directory)

    async def run(
        self,
        argv: Sequence[str],
        *,
        directory: Path,
        environment: Mapping[str, str],
        timeout_s: float,
        quiet: bool = False,
    ) -> Ended:
        """Run a program to its end, `quiet` ones without a word to the log.

        When the caller is cancelled, the whole tree is killed. Raises HostlerError.
        """
        self._quiet = quiet
        loop = asyncio.get_running_loop()
        exited: asyncio.Future[None] = loop.create_future()
        tail: deque[bytes] = deque(maxlen=TAIL_LINES)
        child = self._spawn(argv, directory, environment)
        self._attend(child, lambda: None if exited.done() else exited.set_result(None))
        pipes = (("o", child.stdout), ("e", child.stderr))
        for channel, pipe in pipes:
            loop.add_reader(pipe.fileno(), self._read, channel, pipe, tail)
        timed_out = False
        try:
            try:
                async with asyncio.timeout(timeout_s):
                    await asyncio.shield(exited)
            except TimeoutError:
                timed_out = True
                await self._end(child, exited)
            except asyncio.CancelledError:
                child.kill()
                await asyncio.shield(exited)
                raise
            for channel, pipe in pipes:
                while self._read(channel, pipe, tail):
                    await asyncio.sleep(0)
        finally:
            self._leave()
            for _, pipe in pipes:
                _unwatch(pipe)
            child.close()
        return Ended(child.outcome(), b"".join(tail).decode("utf-8", "replace"), timed_out)

    async def _end(self, child: Child, exited: "asyncio.Future[None]") -> None:
        child.terminate()
        try:
            async with asyncio.timeout(KILL_GRACE_S):
                await asyncio.shield(exited)
        except TimeoutError:
            child.kill()
            await exited

    def _read(self, channel: str, pipe: Pipe, tail: deque[bytes]) -> bool:
        data = pipe.read(READ_BYTES)
        if data:
            tail.extend(data.splitlines(keepends=True))
            if not self._quiet:
                self._hear(channel, data)
            return True
        if data == b"":
            _unwatch(pipe)
        return False


def _unwatch(pipe: Pipe) -> None:
    with contextlib.suppress(ValueError, OSError):
        asyncio.get_running_loop().remove_reader(pipe.fileno())
