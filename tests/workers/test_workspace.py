"""A job's directory: filled with its upload and nothing else, searched for artifacts without following links."""

import errno
import io
import os
import re
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
from fake_line import FakeLine

from storage.errors import HostlerError, Invalid
from workers import platforms, workspace
from workers.archives import ArchiveRefused, ExtractionCancelled
from workers.lines import Offer
from workers.workspace import NotPrepared, Workspace

pytestmark = pytest.mark.skipif(os.name != "posix", reason="it is about POSIX files")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Workspace]:
    platform = platforms.choose("none", slots=1)
    yield Workspace(tmp_path / "root", platform, fetch_limit_bytes=1 << 20, allow=("127.0.0.1",))
    platform.close()


def zipped(**members: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


async def filled(
    place: Workspace, name: str, content: bytes, *, cancelled: bool = False, **spec: object
) -> Path:
    line, directory = FakeLine(), place.make(0)
    line.files[name] = content
    offer = Offer("job", 1, {"file": name, **spec}, 0)
    await place.fill(line, offer, directory, 0, cancelled=lambda: cancelled)
    return directory


def test_a_directory_that_was_made_ahead_serves_once_and_may_be_missing(place: Workspace) -> None:
    root = place.make(1).parent
    before = set(root.iterdir())
    place.make_spare(0)
    (spare,) = set(root.iterdir()) - before
    assert place.make(0) == spare
    place.make_spare(0)
    (spare,) = set(root.iterdir()) - before - {spare}
    spare.rmdir()
    assert place.make(0) != spare
    assert len(list(root.iterdir())) == 3


class Apart:
    """A platform on which nothing of a command outlives it."""

    isolation = "uid"

    def __init__(self) -> None:
        self.room = 1000  # for so many directories more
        self.left = False

    def make_directory(self, path: Path, slot: int) -> None:
        """Make a directory. Raises OSError when the disk is full."""
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        path.mkdir(mode=0o700)
        self.room -= 1

    def left_something(self, slot: int) -> bool:
        """Tell what the test wants."""
        return self.left

    def reclaim_directory(self, path: Path) -> None:
        """It is ours."""


#: More than file systems take between two times that they tell apart.
REST_S = 0.02


@pytest.fixture
def apart() -> Apart:
    return Apart()


@pytest.fixture
def keeping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apart: Apart) -> Workspace:
    monkeypatch.setattr(workspace, "REST_S", REST_S)
    monkeypatch.setattr(workspace, "SLOW_REMOVAL_S", 60.0)  # what is removed is gone at once
    platform = cast("platforms.Platform", apart)
    return Workspace(tmp_path / "root", platform, fetch_limit_bytes=1 << 20, allow=())


def served(place: Workspace, owner: str, do: Callable[[Path], object] = lambda directory: None) -> Path:
    """Return the directory that a job of slot 0 was given, once what was kept had rested, and did something to."""
    time.sleep(REST_S)  # what it is about is time
    directory = place.make(0, owner)
    assert not list(directory.iterdir())
    do(directory)
    place.discard(directory, 0)
    return directory


async def test_jobs_of_one_owner_that_leave_their_directory_alone_share_one(keeping: Workspace) -> None:
    first = [served(keeping, "a") for _ in range(4)]
    assert len(set(first)) == 3  # the second made the one that the others had
    assert first[2].is_dir()
    assert served(keeping, "b") != first[2]
    assert not first[2].exists()
    assert len({served(keeping, owner) for owner in "abab"}) == 4
    assert len({served(keeping, "") for _ in range(4)}) == 4
    await keeping.tidied()
    assert not list(keeping._root.iterdir())


@pytest.mark.parametrize(
    "do",
    [
        lambda directory: (directory / "file").touch(),
        lambda directory: ((directory / "file").touch(), (directory / "file").unlink()),
        lambda directory: directory.chmod(0o700),
        lambda directory: os.utime(directory, (1, 1)),
        lambda directory: directory.rmdir(),
        lambda directory: (directory.rmdir(), directory.mkdir(mode=0o700)),
    ],
    ids=["a file", "a file that is gone again", "its rights", "its times", "gone", "another"],
)
async def test_a_directory_to_which_a_job_did_anything_serves_no_other(
    keeping: Workspace, do: Callable[[Path], object]
) -> None:
    served(keeping, "a")
    served(keeping, "a")
    kept = served(keeping, "a", do)
    assert kept not in {served(keeping, "a") for _ in range(4)}
    await keeping.tidied()
    assert not list(keeping._root.iterdir())


async def test_a_directory_that_rests_or_lies_ready_is_not_open_to_a_job_of_somebody_else(
    keeping: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    served(keeping, "a")
    monkeypatch.setattr(workspace, "REST_S", 60.0)
    served(keeping, "a")  # from now on one rests
    (kept,) = keeping._root.iterdir()
    keeping.make_spare(0)
    monkeypatch.setattr(workspace, "REST_S", 0.0)
    time.sleep(REST_S)
    directory = keeping.make(0, "a")
    assert list(keeping._root.iterdir()) == [directory] == [kept]
    keeping.make_spare(0)
    keeping.discard(directory, 0)
    (kept / "planted").touch()
    directory = keeping.make(0, "b")
    assert not list(directory.iterdir())
    await keeping.tidied()
    assert list(keeping._root.iterdir()) == [directory]


async def test_a_directory_that_a_job_still_has_is_not_given_to_the_next_one(keeping: Workspace) -> None:
    served(keeping, "a")
    served(keeping, "a")
    time.sleep(REST_S)
    first = keeping.make(0, "a")  # its slot is free, and what it left is still looked at
    second = keeping.make(0, "a")
    assert first != second
    keeping.discard(first, 0)
    keeping.discard(second, 0)
    await keeping.tidied()
    assert not list(keeping._root.iterdir())


async def test_a_directory_of_a_job_that_left_what_had_to_be_killed_serves_no_other(
    keeping: Workspace, apart: Apart
) -> None:
    served(keeping, "a")
    served(keeping, "a")
    apart.left = True
    kept = served(keeping, "a")
    assert not kept.exists()
    apart.left = False
    assert kept not in {served(keeping, "a") for _ in range(4)}
    await keeping.tidied()
    assert not list(keeping._root.iterdir())


@pytest.mark.parametrize("ready", [True, False], ids=["one lies ready", "none lies ready"])
async def test_on_a_full_disk_a_job_has_the_last_directory_before_one_is_kept_for_others(
    keeping: Workspace, apart: Apart, ready: bool
) -> None:
    served(keeping, "a")
    if ready:
        keeping.make_spare(0)
    apart.room = 0 if ready else 1
    directory = keeping.make(0, "a")
    assert [directory] == list(keeping._root.iterdir())
    with pytest.raises(OSError, match="No space left"):
        keeping.make(0, "a")
    keeping.discard(directory, 0)
    apart.room = 1000
    assert len({served(keeping, "a") for _ in range(3)}) == 2  # they keep one again
    await keeping.tidied()
    assert not list(keeping._root.iterdir())


async def test_where_a_command_may_be_outlived_no_directory_is_kept(
    place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workspace, "REST_S", 0.0)
    assert len({served(place, "a") for _ in range(4)}) == 4


async def test_an_archive_is_unpacked_and_does_not_lie_among_its_members(place: Workspace) -> None:
    directory = await filled(place, "p.zip", zipped(**{"a": "1", "d/b": "2"}))
    assert {path.relative_to(directory).as_posix() for path in directory.rglob("*")} == {"a", "d", "d/b"}
    assert [path.name for path in directory.parent.iterdir()] == [directory.name]


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("notes.txt", "notes.txt"),
        ("../../x", "x"),
        (".bashrc", "bashrc"),
        ("a$(b);c", "a__b__c"),
        ("...", "download"),
    ],
)
async def test_a_plain_file_lies_there_under_a_harmless_name(place: Workspace, name: str, kept: str) -> None:
    line, directory = FakeLine(), place.make(0)

    async def fetch(offer: Offer, into: Path, *, limit_bytes: int, cancelled: object) -> str:
        into.write_bytes(b"content")
        return name

    line.fetch_file = fetch  # type: ignore[method-assign]
    await place.fill(line, Offer("job", 1, {"file": "f"}, 0), directory, 0, cancelled=lambda: False)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == {kept: b"content"}


async def test_without_a_file_the_directory_is_empty(place: Workspace) -> None:
    directory = place.make(0)
    await place.fill(FakeLine(), Offer("job", 1, {}, 0), directory, 0, cancelled=lambda: False)
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "cancelled", "error"),
    [(zipped(**{"../evil": "1"}), False, ArchiveRefused), (zipped(a="1"), True, ExtractionCancelled)],
)
async def test_what_cannot_be_unpacked_leaves_nothing_beside_the_directory(
    place: Workspace, content: bytes, cancelled: bool, error: type[HostlerError]
) -> None:
    with pytest.raises(error):
        await filled(place, "p.zip", content, cancelled=cancelled)
    assert not list((place._root).glob("fetch-*"))


async def test_an_address_that_may_not_be_reached_is_refused(place: Workspace) -> None:
    directory = place.make(0)
    offer = Offer("job", 1, {"file_url": "https://10.0.0.1/x.zip"}, 0)
    with pytest.raises(Invalid):
        await place.fill(FakeLine(), offer, directory, 0, cancelled=lambda: False)


def test_a_command_starts_in_a_folder_of_its_files_alone(place: Workspace, tmp_path: Path) -> None:
    directory = place.make(0)
    (directory / "sub").mkdir()
    (directory / "file").touch()
    (directory / "out").symlink_to("/etc")
    assert place.working_directory({}, directory) == directory.resolve()
    assert (
        place.working_directory({"working_directory": "./sub/../sub"}, directory)
        == (directory / "sub").resolve()
    )
    for wanted in ("missing", "file", "..", "/etc", "out", "sub/../.."):
        with pytest.raises(Invalid, match=re.escape(repr(wanted))):
            place.working_directory({"working_directory": wanted}, directory)


FILES = (
    "a.txt",
    "b.log",
    "out/a.txt",
    "out/deep/c.txt",
    "out/deep/er/d.xml",
    ".hidden",
    "we [ird]*.txt",
    "a\nb",
)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.txt", {"a.txt", "we [ird]*.txt"}),
        ("./*.log", {"b.log"}),
        ("out/*", {"out/a.txt"}),
        ("out/**", {"out/a.txt", "out/deep/c.txt", "out/deep/er/d.xml"}),
        ("**/*.txt", {"a.txt", "out/a.txt", "out/deep/c.txt", "we [ird]*.txt"}),
        ("out/**/d.xml", {"out/deep/er/d.xml"}),
        ("**/deep/**/*.xml", {"out/deep/er/d.xml"}),
        ("o?t/a.txt", {"out/a.txt"}),
        ("out?a.txt", set()),
        ("[ab].*", {"a.txt", "b.log"}),
        ("**", set(FILES)),
        ("", set()),
        ("../**", set()),
        ("/etc/**", set()),
        ("a.tx", set()),
        ("A.txt", set()),
    ],
)
def test_a_pattern_names_files_as_shells_do(place: Workspace, pattern: str, names: set[str]) -> None:
    directory = place.make(0).resolve()
    for name in FILES:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).touch()
    assert {found.name for found in place.artifacts([pattern], directory)} == names


def test_each_artifact_comes_once_though_two_patterns_name_it(place: Workspace) -> None:
    directory = place.make(0).resolve()
    (directory / "a.txt").touch()
    assert [found.name for found in place.artifacts(["*.txt", "a*"], directory)] == ["a.txt"]


def test_links_pipes_and_folders_are_no_artifacts(place: Workspace) -> None:
    directory = place.make(0).resolve()
    (directory / "link").symlink_to("/etc/passwd")
    (directory / "folder").symlink_to("/etc")
    (directory / "empty").mkdir()
    os.mkfifo(directory / "pipe")
    assert list(place.artifacts(["**"], directory)) == []


def test_a_directory_that_became_a_link_is_not_searched(place: Workspace, tmp_path: Path) -> None:
    directory = place.make(0).resolve()
    sub, elsewhere = directory / "sub", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "secret").touch()
    sub.symlink_to(elsewhere)
    with pytest.raises(NotPrepared, match="link"):
        list(place.artifacts(["**"], sub))


@pytest.mark.parametrize(("limit", "most"), [("MOST_ARTIFACTS", 2), ("ARTIFACTS_LIMIT_BYTES", 20)])
def test_artifacts_that_are_too_many_or_too_big_are_refused(
    place: Workspace, monkeypatch: pytest.MonkeyPatch, limit: str, most: int
) -> None:
    monkeypatch.setattr(workspace, limit, most)
    directory = place.make(0).resolve()
    for number in range(3):
        (directory / str(number)).write_bytes(b"x" * 10)
    with pytest.raises(NotPrepared, match="exceed"):
        list(place.artifacts(["*"], directory))


def test_whatever_a_job_left_is_removed(place: Workspace) -> None:
    directory = place.make(0)
    (directory / "a" / "b").mkdir(parents=True)
    (directory / "a" / "b" / "f").touch()
    (directory / "a").chmod(0)
    directory.chmod(0)
    place.remove(directory)
    assert not directory.exists()


def test_a_sweep_removes_what_an_earlier_worker_left(place: Workspace) -> None:
    place.make(0)
    (place._root / "fetch-x").mkdir()
    (place._root / "fetch-x" / "file").touch()
    (place._root / "tmpspool").touch()
    (place._root / "mine").touch()
    assert place.sweep() == 3
    assert [path.name for path in place._root.iterdir()] == ["mine"]


def test_what_a_killed_worker_left_goes_with_the_next_one_and_a_living_ones_stays(
    place: Workspace,
) -> None:
    import fcntl

    neighbours = {}
    for name in ("dead", "alive", "not-ours"):
        neighbours[name] = place._root.parent / name
        (neighbours[name] / "job-x").mkdir(parents=True)
    for name in ("dead", "alive"):
        (neighbours[name] / "in-use").touch()
    with (neighbours["alive"] / "in-use").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        with place.in_use():
            own = place.make(0)
            assert place.sweep_after_the_dead() == 1
    assert own.exists()
    left = {name for name, path in neighbours.items() if (path / "job-x").exists()}
    assert left == {"alive", "not-ours"}
