"""`hostler doctor`: what it shows and exits with, and what it makes for a release."""

import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from cli.main import main
from settings import Settings

pytestmark = pytest.mark.stack

Environ = Callable[..., None]


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> Environ:
    """Make the environment of the command: nothing but what the test gives."""

    def give(**values: str) -> None:
        for name in list(os.environ):  # noqa: TID251  the command reads it
            if name.startswith(("HOSTLER_", "REDIS_", "S3_", "AWS_")):
                monkeypatch.delenv(name)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return give


def variables(settings: Settings, bucket: str) -> dict[str, str]:
    return {
        "REDIS_URL": settings.redis_url,
        "HOSTLER_SECRET_KEY": str(settings.secret_key),
        "S3_ENDPOINT_URL": str(settings.s3_endpoint_url),
        "S3_ACCESS_KEY_ID": str(settings.s3_access_key_id),
        "S3_SECRET_ACCESS_KEY": str(settings.s3_secret_access_key),
        "S3_BUCKET": bucket,
    }


def report(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, str]]:
    shown = json.loads(capsys.readouterr().out)
    return {check["name"]: check for check in shown["checks"]}


def test_every_bad_setting_is_shown_at_once(environ: Environ, capsys: pytest.CaptureFixture[str]) -> None:
    environ(HOSTLER_LEASE_S="soon", HOSTLER_SLOTS="0", HOSTLER_NO_SUCH="1")
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("HOSTLER_LEASE_S", "HOSTLER_SLOTS", "HOSTLER_NO_SUCH"))


def test_what_is_away_is_said_with_how_to_mend_it(
    environ: Environ, capsys: pytest.CaptureFixture[str]
) -> None:
    environ(
        REDIS_URL="redis://127.0.0.1:1",
        S3_ENDPOINT_URL="http://127.0.0.1:1",
        S3_ACCESS_KEY_ID="a",
        S3_SECRET_ACCESS_KEY="b",
    )
    assert main(["doctor", "--json"]) == 1
    checks = report(capsys)
    assert {name: check["status"] for name, check in checks.items()} == {
        "settings": "ok", "secret key": "fail", "redis": "fail", "s3 bucket": "fail",
    }  # fmt: skip
    assert all(check["remedy"] for name, check in checks.items() if name != "settings")


def test_a_release_makes_the_bucket_and_the_first_admin_once(
    environ: Environ,
    settings_with_s3: Settings,
    redis_client: redis.Redis,
    capsys: pytest.CaptureFixture[str],
) -> None:
    environ(
        **variables(settings_with_s3, f"test-{secrets.token_hex(6)}"), HOSTLER_ADMIN_EMAIL="ada@example.com"
    )
    assert main(["doctor"]) == 1, "the bucket is missing"
    assert "✗ s3 bucket" in capsys.readouterr().out
    assert main(["doctor", "--prepare"]) == 0
    shown = capsys.readouterr().out
    assert "Created the first admin, ada@example.com." in shown
    assert "Its password, shown this once: " in shown
    assert redis_client.zcard("h:users") == 1
    assert main(["doctor", "--prepare", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert "admin" not in again
    assert again["status"] == "warn", "no worker and no scheduler"
    assert redis_client.zcard("h:users") == 1


def test_a_password_that_is_known_is_not_printed(
    environ: Environ, settings_with_s3: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    password = secrets.token_urlsafe(18)
    environ(**variables(settings_with_s3, settings_with_s3.s3_bucket), HOSTLER_ADMIN_PASSWORD=password)
    assert main(["doctor", "--prepare"]) == 0
    shown = str(capsys.readouterr())
    assert "Created the first admin" in shown
    assert password not in shown


def test_a_folder_of_up_tells_where_its_servers_are(
    environ: Environ, settings_with_s3: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = variables(settings_with_s3, settings_with_s3.s3_bucket)
    port = int(given["REDIS_URL"].rpartition(":")[2].split("/")[0])
    password = given["REDIS_URL"].split(":")[2].split("@")[0]
    (tmp_path / "redis").mkdir()
    (tmp_path / "s3").mkdir()
    (tmp_path / "lock").touch()
    (tmp_path / "secret_key").write_text(given["HOSTLER_SECRET_KEY"])
    (tmp_path / "redis/hostler.json").write_text(json.dumps({"port": port, "password": password}))
    s3_port = int(given["S3_ENDPOINT_URL"].rpartition(":")[2])
    known = {
        "ports": {"s3": s3_port},
        "access_key": given["S3_ACCESS_KEY_ID"],
        "secret_key": given["S3_SECRET_ACCESS_KEY"],
    }
    (tmp_path / "s3/hostler.json").write_text(json.dumps(known))
    environ(S3_BUCKET=given["S3_BUCKET"])
    assert main(["doctor", "--data", str(tmp_path), "--json"]) == 0
    assert report(capsys)["s3 put"]["status"] == "ok"


def test_any_other_folder_is_refused(
    environ: Environ, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    environ()
    assert main(["doctor", "--data", str(tmp_path)]) == 1
    assert f"hostler up --data {tmp_path}" in capsys.readouterr().err
