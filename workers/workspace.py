"""A job's directory: made empty, filled with the upload, searched for artifacts, taken away."""

import asyncio
import contextlib
import itertools
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from integrations import outbound
from storage.errors import HostlerError, Invalid
from workers import archives
from workers.lines import Line, Offer
from workers.log import log
from workers.platforms import Platform

#: So many artifacts of a job are kept, and so many bytes of them together.
MOST_ARTIFACTS = 1000
ARTIFACTS_LIMIT_BYTES = 2 * 1024**3
#: While removing an empty directory waits so long for the disk, a thread does it, which costs more of the processor.
SLOW_REMOVAL_S = 0.00015
#: A directory that was made in advance is used for so long: who tidies the machine may take older empty ones away.
SPARE_S = 3600.0
#: A directory that is to serve several commands has been made so long before the first of them: longer than any file
#: system takes between two times that it can tell apart, so that whatever a command does to it shows.
REST_S = 2.5
#: Directories of jobs that have ended wait so long for others.
DISCARD_EVERY_S = 0.1
#: The file in a worker's directory that is locked for as long as the worker lives.
_IN_USE = "in-use"
#: What the names of all else there begin with: directories of jobs (the second of versions before), of uploads.
_PREFIXES = ("job-", "spare-", "fetch-", "tmp")


class NotPrepared(HostlerError):
    """The job's directory could not be made ready; the message says why."""

    code = "NOT_PREPARED"


@dataclass(frozen=True, slots=True)
class Found:
    """A file that the job left: its name relative to the working directory, and where it is."""

    name: str
    path: Path


@dataclass(slots=True)
class _Kept:
    """A directory that serves one job of a slot after the other while they are of one owner and leave it alone."""

    path: Path
    made_s: float
    facts: tuple[int, ...]  # about it as it was made
    lent: bool = False


class Workspace:
    """The directories of one worker's jobs, below its own work directory."""

    def __init__(
        self, root: Path, platform: Platform, *, fetch_limit_bytes: int, allow: tuple[str, ...]
    ) -> None:
        self._fetch_limit_bytes, self._allow = fetch_limit_bytes, allow
        root.mkdir(parents=True, exist_ok=True)
        root.chmod(0o711)  # jobs reach their own directory by name, and list nothing
        self._root, self._platform = root.resolve(), platform
        self._discarded: list[Path] = []
        self._spares: dict[int, tuple[float, Path]] = {}  # by slot, and when it was made
        self._kept: dict[int, _Kept] = {}  # by slot
        self._owners: dict[int, str] = {}  # of the last job of each slot
        # elsewhere what a command has left behind may live on, and could reach the files of the next one
        self._keeps = platform.isolation == "uid"
        self._removal_s = 0.0  # how long it took to remove an empty directory, lately
        self._discarding: asyncio.Task[None] | None = None
        self._names = (f"job-{secrets.token_hex(4)}-{number}" for number in itertools.count())

    def make(self, slot: int, owner: str = "") -> Path:
        """Return an empty directory that belongs to the commands of `slot`. Raises OSError, HostlerError.

        It is a fresh one, or one that the slot's last jobs had, all of the same owner, and that none of them touched;
        always a fresh one for an owner "".
        """
        if not owner or owner != self._owners.get(slot) or not self._keeps:
            self._owners[slot] = owner
            self._give_up(slot)
            return self._fresh(slot)
        if (lent := self._lend(slot)) is not None:
            return lent
        directory = self._fresh(slot)  # first: the disk may have room for one alone
        if slot not in self._kept:
            self._keep_another(slot)
        return directory

    def _fresh(self, slot: int) -> Path:
        made_s, spare = self._spares.pop(slot, (0.0, None))
        if spare is not None and os.access(spare, os.F_OK):  # nobody has tidied up meanwhile
            if time.monotonic() - made_s < SPARE_S:
                return spare
            self._discard(spare)
        return self._made(slot, next(self._names))

    def _lend(self, slot: int) -> Path | None:
        """Return the directory that is kept for a slot, if it is as it was made; keep one no longer that is not."""
        kept = self._kept.get(slot)
        if kept is not None and not kept.lent:
            age_s = time.monotonic() - kept.made_s
            if age_s < REST_S:
                return None
            if age_s < SPARE_S and _facts(kept.path) == kept.facts:
                kept.lent = True
                if slot in self._spares:  # it would lie open to this job, and serve one of somebody else
                    self._discard(self._spares.pop(slot)[1])
                return kept.path
        self._give_up(slot)
        return None

    def _keep_another(self, slot: int) -> None:
        """Make a directory that is to serve several commands of a slot, if the disk allows."""
        with contextlib.suppress(OSError, HostlerError):
            path = self._made(slot, next(self._names))
            if facts := _facts(path):
                self._kept[slot] = _Kept(path, time.monotonic(), facts)

    def _give_up(self, slot: int) -> None:
        """Keep no directory for a slot any more: whoever had its user may still hold it open."""
        kept = self._kept.pop(slot, None)
        if kept is not None and not kept.lent:
            self._discard(kept.path)

    def make_spare(self, slot: int) -> None:
        """Make the directory for the next command of an idle slot, so that it need not wait for the disk.

        Nothing of that slot may run. Should it fail, `make` will say so.
        """
        kept = self._kept.get(slot)
        if kept is not None and time.monotonic() - kept.made_s >= REST_S:
            return
        if slot not in self._spares:
            with contextlib.suppress(OSError, HostlerError):
                self._spares[slot] = time.monotonic(), self._made(slot, next(self._names))

    def _made(self, slot: int, name: str) -> Path:
        directory = self._root / name
        self._platform.make_directory(directory, slot)
        return directory

    async def fill(
        self, line: Line, offer: Offer, directory: Path, slot: int, *, cancelled: Callable[[], bool]
    ) -> None:
        """Download what the job works on and unpack it into `directory`. Raises HostlerError."""
        spec = offer.spec
        if not offer.needs_files:
            return
        # beside the job's directory, not in it: an archive's members must not meet the archive
        beside = Path(tempfile.mkdtemp(prefix="fetch-", dir=self._root))
        fetched = beside / "file"
        try:
            if spec.get("file"):
                name = await line.fetch_file(
                    offer, fetched, limit_bytes=self._fetch_limit_bytes, cancelled=cancelled
                )
            else:
                name = await asyncio.to_thread(self._fetch_outside, str(spec["file_url"]), fetched, cancelled)
            await asyncio.to_thread(self._unpack, fetched, name, directory, slot, cancelled)
        finally:
            await asyncio.to_thread(shutil.rmtree, beside, ignore_errors=True)

    def _fetch_outside(self, url: str, into: Path, cancelled: Callable[[], bool]) -> str:
        with into.open("wb") as file:
            outbound.fetch(
                url,
                file,
                limit_bytes=self._fetch_limit_bytes,
                timeout_s=600,
                allow=self._allow,
                cancelled=cancelled,
            )
        return PurePosixPath(unquote(urlsplit(url).path)).name or "download"

    def _unpack(
        self, fetched: Path, name: str, directory: Path, slot: int, cancelled: Callable[[], bool]
    ) -> None:
        if archives.is_archive(fetched):
            archives.extract(fetched, directory, cancelled=cancelled)
        else:
            plain = re.sub(r"[^A-Za-z0-9._ -]", "_", PurePosixPath(name).name).lstrip(".-") or "download"
            shutil.copyfile(fetched, directory / plain)
        self._platform.prepare_directory(directory, slot)

    def working_directory(self, spec: Mapping[str, object], directory: Path) -> Path:
        """Return where the command starts. Raises Invalid when there is no such folder in the upload."""
        if not spec.get("working_directory"):
            return directory
        wanted = directory / str(spec.get("working_directory") or ".")
        real = wanted.resolve()
        if not real.is_relative_to(directory.resolve()) or not real.is_dir():
            raise Invalid(
                f"workingDirectory {spec.get('working_directory')!r} is no folder of the job's files."
            )
        return real

    def artifacts(self, patterns: list[str], directory: Path) -> Iterator[Found]:
        """Return the regular files below `directory` that match a pattern; links are not followed.

        `**` matches any number of folders. Raises NotPrepared when they are too many or too big.
        """
        globs = [PurePosixPath(each) for each in patterns]
        count = size_bytes = 0
        if directory.resolve() != directory:  # else its command chose what of this machine we give away
            raise NotPrepared("The working directory has been replaced by a link.")
        for folder, folders, files in os.walk(directory, followlinks=False):
            folders.sort()
            for file in sorted(files):
                path = Path(folder, file)
                name = PurePosixPath(path.relative_to(directory).as_posix())
                if not any(_matches(name, glob) for glob in globs):
                    continue
                facts = path.lstat()
                if not stat.S_ISREG(facts.st_mode):
                    continue
                count, size_bytes = count + 1, size_bytes + facts.st_size
                if count > MOST_ARTIFACTS or size_bytes > ARTIFACTS_LIMIT_BYTES:
                    raise NotPrepared(
                        f"The artifacts exceed {MOST_ARTIFACTS} files or {ARTIFACTS_LIMIT_BYTES} bytes."
                    )
                yield Found(str(name), path)

    def discard(self, directory: Path, slot: int) -> None:
        """Let go of a job's directory: keep it for the next one, or take it away with all that is in it."""
        if not self.take_back(directory, slot):
            self._discard(directory)

    def take_back(self, directory: Path, slot: int) -> bool:
        """Let go of the directory of a job, of which nothing runs any more, if that is quickly done; tell whether so.

        So it is where the directory can be kept for the next job, or is empty and the disk is quick.
        """
        kept = self._kept.get(slot)
        if kept is not None and kept.path == directory:
            kept.lent = False
            if _facts(directory) == kept.facts and not self._platform.left_something(slot):
                return True
            del self._kept[slot]
        return self._remove_empty(directory)

    def _discard(self, directory: Path) -> None:
        """Remove a directory: at once if it is empty and the disk is quick, else soon, several in one go."""
        if self._remove_empty(directory):
            return
        self._discarded.append(directory)
        if self._discarding is None or self._discarding.done():
            self._discarding = asyncio.get_running_loop().create_task(self._remove_discarded())

    def _remove_empty(self, directory: Path) -> bool:
        if self._removal_s >= SLOW_REMOVAL_S:
            return False
        began = time.perf_counter()
        try:
            os.rmdir(directory)
        except OSError:  # something is in it
            return False
        self._removal_s += 0.1 * (time.perf_counter() - began - self._removal_s)
        return True

    async def _remove_discarded(self) -> None:
        await asyncio.sleep(DISCARD_EVERY_S)
        while self._discarded:
            directories, self._discarded = self._discarded, []
            await asyncio.to_thread(self._remove_all, directories)
            self._removal_s *= 0.5  # it may be quick again

    def _remove_all(self, directories: list[Path]) -> None:
        for directory in directories:
            try:
                os.rmdir(directory)  # most jobs leave nothing
            except FileNotFoundError:  # somebody tidied up meanwhile
                continue
            except OSError:
                try:
                    self.remove(directory)
                except OSError as error:  # the next start sweeps
                    log.warning("a directory could not be removed", extra={"why": str(error)})

    async def tidied(self) -> None:
        """Return once everything that was discarded, or made for nothing, is gone."""
        while self._spares:
            self._discard(self._spares.popitem()[1][1])
        for slot in list(self._kept):
            self._give_up(slot)
        if self._discarding is not None:
            await self._discarding

    def remove(self, directory: Path) -> None:
        """Take a job's directory away, whatever is in it."""
        self._platform.reclaim_directory(directory)
        shutil.rmtree(directory, ignore_errors=True)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Hold a lock that ends with this process, whichever way it ends; POSIX only."""
        with (self._root / _IN_USE).open("ab") as file:
            if sys.platform != "win32":
                import fcntl  # noqa: PLC0415  Windows has it not

                # shared, since a successor of the same name waits for its turn at the registration
                fcntl.flock(file, fcntl.LOCK_SH)
            yield

    def sweep_after_the_dead(self) -> int:
        """Remove what workers of other names left beside this one when they were killed; answers how much that was."""
        if sys.platform == "win32":
            return 0
        import fcntl  # noqa: PLC0415  Windows has it not

        count = 0
        for mark in self._root.parent.glob(f"*/{_IN_USE}"):
            with contextlib.suppress(OSError):  # it is used, or not ours
                if mark.parent == self._root or mark.parent.lstat().st_uid != os.getuid():
                    continue
                with mark.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    count += self._sweep(mark.parent)
        return count

    def sweep(self) -> int:
        """Remove what an earlier worker of this name left behind; answers how much that was."""
        return self._sweep(self._root)

    def _sweep(self, root: Path) -> int:
        left = [path for path in root.iterdir() if path.name.startswith(_PREFIXES)]
        for path in left:
            if path.is_dir():
                self.remove(path)
            else:
                path.unlink(missing_ok=True)
        return len(left)


def _facts(directory: Path) -> tuple[int, ...]:
    """Return what tells whether anything about a directory has changed, and nothing where it is gone.

    What is put into it, its owner, its rights and attributes: any of that changes the last one, which nobody can set.
    """
    try:
        facts = os.lstat(directory)
    except OSError:
        return ()
    return facts.st_dev, facts.st_ino, facts.st_mode, facts.st_uid, facts.st_mtime_ns, facts.st_ctime_ns


def _matches(name: PurePosixPath, glob: PurePosixPath) -> bool:
    """Whether a path matches part by part; `**` stands for any number of parts, and nothing else for a slash."""
    wanted = glob.parts
    places = {0}  # how many parts of the pattern may have been used up
    for part in name.parts:
        places = _past_wildcards(places, wanted)
        stay = {place for place in places if wanted[place : place + 1] == ("**",)}
        places = stay | {
            place + 1 for place in places - stay if place < len(wanted) and fnmatchcase(part, wanted[place])
        }
    return len(wanted) in _past_wildcards(places, wanted)


def _past_wildcards(places: set[int], wanted: tuple[str, ...]) -> set[int]:
    reached = set(places)
    for place in sorted(places):
        while wanted[place : place + 1] == ("**",):
            place += 1  # noqa: PLW2901  it walks on
            reached.add(place)
    return reached
