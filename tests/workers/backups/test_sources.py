"""What a backup reads: the programs that make dumps, what they are given, and volumes that are in use."""

import shutil
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from servers import Valkey

from storage.errors import Conflict, NotFound
from workers.backups import sources
from workers.backups.process import Programs

#: Prints what it was given, and complains in two pieces.
ECHO = '#!/bin/sh\nprintf "%s|" "$0" "$@" "$MYSQL_PWD$PGPASSWORD"\nprintf "one " >&2\necho "line" >&2\n'


@pytest.fixture
async def job() -> AsyncIterator[Programs]:
    with Programs("job") as programs:
        yield programs


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that is the whole PATH, but for a shell."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "bin"


def program(path: Path, content: str = ECHO) -> None:
    path.write_text(content)
    path.chmod(0o755)


async def dump_of(
    job: Programs, source: Mapping[str, Any], password: str, directory: Path
) -> tuple[list[str], list[str]]:
    said: list[str] = []
    path = await sources.dumped({"name": "shop", **source}, password, job, directory, said.append)
    assert path.stat().st_mode & 0o777 == 0o600, "a dump is for nobody else"
    name, *words, _ = path.read_text().split("|")
    return [Path(name).name, *words], said


@pytest.mark.parametrize(
    ("source", "there", "expected"),
    [
        ({"type": "mysql", "host": "localhost", "port": 3307, "database": "a b"}, "mariadb-dump",
         ["--host=localhost", "--port=3307", "--protocol=tcp", "--no-tablespaces", "--databases", "a b", "s3cret"]),
        ({"type": "mysql", "host": "/run/mysqld.sock"}, "mysqldump", ["--socket=/run/mysqld.sock", "--all-databases"]),
        ({"type": "postgresql", "host": "/run/postgresql", "user": "u"}, "pg_dumpall",
         ["--no-password", "--host=/run/postgresql", "--username=u", "s3cret"]),
    ],
)  # fmt: skip
async def test_a_dump_is_asked_of_the_program_that_is_there(
    job: Programs, programs: Path, source: dict[str, Any], there: str, expected: list[str]
) -> None:
    program(programs / there)
    words, said = await dump_of(job, source, "s3cret", programs.parent)
    assert words[0] == there
    assert [each for each in words if each in expected] == expected
    assert said == ["dumps shop", "one line"]


async def test_a_dump_whose_program_is_missing_says_which_it_wants(
    job: Programs, programs: Path, tmp_path: Path
) -> None:
    with pytest.raises(NotFound, match="This node has no mysqldump or mariadb-dump"):
        await dump_of(job, {"type": "mysql"}, "", tmp_path)
    assert list(tmp_path.iterdir()) == [programs]


async def test_in_a_container_a_password_is_no_argument(
    job: Programs, programs: Path, tmp_path: Path
) -> None:
    program(programs / "docker")
    words, _ = await dump_of(
        job, {"type": "postgresql", "database": "d", "container": "db"}, "s3cret", tmp_path
    )
    assert words[:6] == ["docker", "exec", "--env", "PGPASSWORD", "db", "pg_dump"]
    assert words.index("s3cret") == len(words) - 1  # where the fake prints its environment


async def test_a_volume_that_containers_have_mounted_is_not_exchanged(
    job: Programs, programs: Path, tmp_path: Path
) -> None:
    program(programs / "docker", "#!/bin/sh\necho web\necho db\n")
    with pytest.raises(Conflict, match="docker stop web db"):
        await sources.check_unused("data", job, tmp_path)
    program(programs / "docker", "#!/bin/sh\n")
    await sources.check_unused("data", job, tmp_path)


@pytest.mark.skipif(shutil.which("redis-cli") is None, reason="redis-cli is not installed")
async def test_a_real_dump_of_redis_ends_where_its_data_end(
    job: Programs, valkey: Valkey, redis_client: Any, tmp_path: Path
) -> None:
    redis_client.config_set("repl-diskless-sync-delay", 0)
    redis_client.set("h:greeting", "moin")
    address = urlsplit(valkey.url)
    source = {"type": "redis", "name": "cache", "host": "127.0.0.1", "port": address.port}
    path = await sources.dumped(source, address.password or "", job, tmp_path, lambda _: None)
    content = path.read_bytes()
    assert (content[:5], content[-9]) == (b"REDIS", 0xFF)  # then eight bytes of a checksum
    assert b"moin" in content
