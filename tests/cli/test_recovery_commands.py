"""`hostler rebuild`, `recovery-kit` and `backup self`: what they say, what they hide, and what they refuse."""

import fcntl
import os
import stat
from pathlib import Path
from typing import Any

import orjson
import pytest

from cli import recovery as commands
from cli.main import main
from settings import Settings
from storage import recovery
from storage.seal import Seal
from storage.store import Store


@pytest.fixture
def environment(settings_with_s3: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The environment that leads to the test's own servers."""
    given = {
        "REDIS_URL": settings_with_s3.redis_url, "HOSTLER_SECRET_KEY": settings_with_s3.secret_key,
        "S3_ENDPOINT_URL": settings_with_s3.s3_endpoint_url, "S3_BUCKET": settings_with_s3.s3_bucket,
        "S3_ACCESS_KEY_ID": settings_with_s3.s3_access_key_id,
        "S3_SECRET_ACCESS_KEY": settings_with_s3.s3_secret_access_key,
    }  # fmt: skip
    monkeypatch.setattr(
        commands, "process_environment", lambda: {name: str(value) for name, value in given.items()}
    )
    return settings_with_s3


def secrets_of(settings: Settings) -> list[str]:
    return [str(settings.secret_key), str(settings.s3_secret_access_key), "test-password"]


def test_a_kit_shows_addresses_and_the_keys_fingerprint_and_hides_the_rest(
    environment: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recovery-kit"]) == 0
    shown = capsys.readouterr().out
    assert Seal(str(environment.secret_key)).fingerprint in shown
    assert environment.s3_bucket in shown
    assert not [secret for secret in secrets_of(environment) if secret in shown]


def test_a_revealed_kit_goes_into_a_file_of_its_owner_alone(
    environment: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kit = tmp_path / "kit.env"
    assert main(["recovery-kit", "--reveal", "--to", str(kit)]) == 0
    assert stat.S_IMODE(kit.stat().st_mode) == 0o600
    lines = dict(line.split("=", 1) for line in kit.read_text().splitlines() if not line.startswith("#"))
    assert lines["HOSTLER_SECRET_KEY"] == environment.secret_key
    assert Settings.from_env(lines).s3_bucket == environment.s3_bucket
    assert not [secret for secret in secrets_of(environment) if secret in capsys.readouterr().out]


def test_a_point_is_made_verified_listed_and_rebuilt_from(
    environment: Settings, redis_client: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["backup", "self", "--json"]) == 0
    point = orjson.loads(capsys.readouterr().out)
    assert main(["backup", "self", "--verify", "newest"]) == 0
    assert point["id"] in capsys.readouterr().out
    redis_client.flushall()
    assert main(["rebuild", "--list", "--json"]) == 0
    assert [each["id"] for each in orjson.loads(capsys.readouterr().out)] == [point["id"]]
    where = f"s3://{environment.s3_bucket}/{recovery.PREFIX}#{point['id']}"
    assert main(["rebuild", "--from", where, "--dry-run"]) == 0
    assert "nothing was written" in capsys.readouterr().out
    assert redis_client.dbsize() == 0
    assert main(["rebuild", "--from", where]) == 0
    assert "took" in capsys.readouterr().out
    assert redis_client.exists("h:recovery")


def test_the_points_of_a_folder_are_listed_also_while_an_up_works_on_it(
    environment: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open(tmp_path / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        assert main(["backup", "self", "--data", str(tmp_path), "--json"]) == 0
        point = orjson.loads(capsys.readouterr().out)
        assert main(["rebuild", "--list", "--data", str(tmp_path), "--json"]) == 0
        assert [each["id"] for each in orjson.loads(capsys.readouterr().out)] == [point["id"]]
        assert main(["rebuild", "--data", str(tmp_path)]) == 1
        assert "is in use by another hostler up" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize("command", [["recovery-kit"], ["backup", "self"], ["rebuild"]])
def test_without_the_secret_key_the_way_to_the_folder_that_has_it_is_named(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands, "process_environment", dict)
    assert main(command) == 1
    said = capsys.readouterr().err
    assert "HOSTLER_SECRET_KEY is not set" in said
    assert "Try: the same with --data FOLDER" in said


def test_what_cannot_be_rebuilt_is_said_in_one_sentence(
    environment: Settings, redis_client: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rebuild"]) == 1
    assert "There is no recovery point under s3://" in capsys.readouterr().err
    assert main(["rebuild", "--from", "http://elsewhere"]) == 2
    assert "is not s3://BUCKET" in capsys.readouterr().err
    assert main(["rebuild", "--from", f"s3://{environment.s3_bucket}#20260101T000000Z-00000000"]) == 1
    assert "There is no recovery point '20260101T000000Z-00000000'" in capsys.readouterr().err
    assert main(["backup", "self"]) == 0
    redis_client.set("h:user:user-x", "x")
    assert main(["rebuild"]) == 1
    assert "Redis is not empty (it holds h:user:user-x)" in capsys.readouterr().err.replace("\n", " ")


async def test_the_kit_of_a_fresh_installation_says_that_there_is_no_point_yet(environment: Settings) -> None:
    store = Store(environment)
    assert await recovery.every(recovery.Place.of(store)) == []
    await store.close()
    assert "none yet" in commands._kit(environment, [], reveal=False)
