"""Where apps lie: who may write what, and that nothing leads elsewhere."""

import os
import shutil
import socket
import stat
import tempfile
from pathlib import Path

import pytest

from storage.errors import Conflict, Invalid, NotFound
from workers.supervisor import places
from workers.supervisor.places import SOCKET_PATH_BYTES, connectable
from workers.supervisor.users import APP_USERS, Users, give

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")


@pytest.mark.parametrize("name", ["", "..", "a/b", "/etc", ".hidden", "a\0b", "x" * 129])
def test_a_name_that_could_lead_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(Invalid):
        places.of(tmp_path, name)


def test_sockets_of_a_deep_directory_get_a_short_path(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 80)
    app = places.of(deep, "app")
    app.make(None)
    try:
        assert len(os.fsencode(app.socket("p" * 40, 999))) <= SOCKET_PATH_BYTES
        assert len(os.fsencode(app.events)) <= SOCKET_PATH_BYTES
        assert app.run.is_dir()
    finally:
        app.remove(keep_data=False)
    assert not app.run.exists()
    assert not app.root.exists()


def test_uninstalling_keeps_the_data_when_told_so(tmp_path: Path) -> None:
    app = places.of(tmp_path, "app")
    app.make(None)
    (app.data / "kept").write_text("x")
    app.remove(keep_data=True)
    app.remove(keep_data=True)
    assert [path.name for path in app.root.iterdir()] == ["data"]
    app.remove(keep_data=False)
    assert not app.root.exists()


def test_a_release_must_be_one_of_the_app(tmp_path: Path) -> None:
    app = places.of(tmp_path, "app")
    app.make(None)
    with pytest.raises(NotFound):
        app.release()
    app.current.symlink_to("/etc")
    with pytest.raises(Conflict):
        app.release()
    app.remove(keep_data=False)


def test_a_link_in_the_place_of_a_directory_is_refused(tmp_path: Path) -> None:
    app = places.of(tmp_path / "apps", "app")
    app.root.mkdir(parents=True)
    (tmp_path / "foreign").mkdir()
    app.data.symlink_to(tmp_path / "foreign")
    with pytest.raises(Conflict):
        app.make(None)


def test_no_link_leads_the_worker_to_a_foreign_socket(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()
        (tmp_path / "link").symlink_to(tmp_path / "s")
        with pytest.raises(NotFound), connectable(tmp_path / "link", None):
            pass
        with pytest.raises(NotFound), connectable(tmp_path / "s", os.getuid() + 1):
            pass
        with connectable(tmp_path / "s", os.getuid()) as path, socket.socket(socket.AF_UNIX) as client:
            client.connect(path)


@needs_root
def test_only_what_the_app_shall_write_is_its_own(tmp_path: Path) -> None:
    app = places.of(tmp_path, "app")
    app.make(APP_USERS[0])
    app.write_config(b"{}", APP_USERS[0])
    made = {*app.root.iterdir(), app.run}
    assert {path for path in made if path.stat().st_uid == APP_USERS[0]} == {app.data, app.tmp, app.run}
    facts = app.config.stat()
    app.remove(keep_data=False)
    assert (stat.S_IMODE(facts.st_mode), facts.st_uid) == (0o600, APP_USERS[0])


@needs_root
def test_each_app_has_a_user_of_its_own_for_good(tmp_path: Path) -> None:
    users = Users(tmp_path, isolation="uid")
    first, second = users.of("a"), users.of("b")
    assert first != second
    assert Users(tmp_path, isolation="uid").of("a") == first
    users.forget("a")
    assert Users(tmp_path, isolation="uid").of("c") not in {second, None}


@needs_root
def test_giving_a_release_away_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "release").mkdir()
    (tmp_path / "foreign").touch()
    (tmp_path / "release" / "link").symlink_to(tmp_path / "foreign")
    give(tmp_path / "release", APP_USERS[0])
    assert (tmp_path / "foreign").stat().st_uid == 0
    assert (tmp_path / "release" / "link").lstat().st_uid == APP_USERS[0]


def test_what_an_app_has_closed_is_opened_to_be_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    top = Path(tempfile.mkdtemp(prefix="hostler-test-"))  # short: its sockets lie within
    app = places.of(top, "app")
    app.make(None)
    inner = app.data / "closed" / "inner"
    inner.mkdir(parents=True)
    (inner / "file").touch()
    inner.chmod(0o500)
    inner.parent.chmod(0)
    monkeypatch.setattr(os, "getuid", lambda: 1000)  # root would remove it anyway
    modes: dict[str, int] = {}
    remove = shutil.rmtree

    def seen(path: Path) -> None:
        modes.update(
            {each.name: stat.S_IMODE(each.stat().st_mode) for each in path.rglob("*") if each.is_dir()}
        )
        remove(path)

    monkeypatch.setattr(shutil, "rmtree", seen)
    app.remove(keep_data=False)
    assert (modes["closed"], modes["inner"]) == (0o700, 0o700)
    top.rmdir()
