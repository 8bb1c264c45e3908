"""`hostler doctor`: the checks of storage/checks.py, run and shown, with how to mend what is wrong."""

import asyncio
import json
import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rich.text import Text

from cli import rendering
from cli.failures import Failed
from settings import BadSettings, Settings
from storage import bootstrap, checks
from storage.checks import FAIL, OK, WARN, Check
from storage.errors import HostlerError
from storage.store import Store

MARKS = {OK: "✓", WARN: "!", FAIL: "✗"}


def examine(environ: Mapping[str, str], *, data: Path | None, prepare: bool, as_json: bool) -> int:
    """Run every check, after making what an empty installation needs if asked to, and return the exit code."""
    if data is not None:
        environ = environ_of(data, environ)
    found, admin = asyncio.run(_examine(environ, prepare=prepare))
    worst = next((status for status in (FAIL, WARN) if any(check.status == status for check in found)), OK)
    if as_json:
        report = {"status": worst, "checks": [checks.as_json(check) for check in found]}
        rendering.write_json(report | ({"admin": admin} if admin else {}))
    else:
        for check in found:
            show(check.name, check.status, check.message, check.remedy)
        if admin is not None:
            rendering.stdout().print(f"Created the first admin, {admin['email']}.")
            if "password" in admin:
                rendering.stdout().print(f"Its password, shown this once: {admin['password']}")
    return 1 if worst == FAIL else 0


async def _examine(environ: Mapping[str, str], *, prepare: bool) -> tuple[list[Check], dict[str, str] | None]:
    try:
        settings = Settings.from_env(environ)
    except BadSettings as error:
        remedy = "Mend or unset this variable; settings.py lists them all."
        return [Check("settings", FAIL, problem, remedy) for problem in error.problems], None
    found, admin = [Check("settings", OK, "The settings make sense.")], None
    if settings.secret_key is None:
        remedy = "Set it to 32 bytes or more, the same for all processes: openssl rand -base64 48"
        found.append(Check("secret key", FAIL, "HOSTLER_SECRET_KEY is not set.", remedy))
    elif prepare:
        check, admin = await _prepare(settings)
        found.append(check)
    known = settings.secret_key is not None
    store = Store(settings if known else replace(settings, secret_key=secrets.token_hex(32)))
    try:
        results = await checks.everything(store)
    finally:
        await store.close()
    # under a made-up key nothing stored opens, which says nothing
    return [*found, *(check for check in results if known or check.name != "secret key")], admin


async def _prepare(settings: Settings) -> tuple[Check, dict[str, str] | None]:
    try:
        made = await bootstrap.prepare(settings)
    except HostlerError as error:
        return Check("preparation", FAIL, str(error), "The checks below say what is wrong."), None
    if made is None:
        return Check("preparation", OK, "The bucket and an admin are there."), None
    admin = {"email": made.email}
    if not settings.admin_password:  # nobody knows it yet, and there is no other way to learn it
        admin["password"] = made.password
    return Check("preparation", OK, "The bucket and the first admin are there."), admin


def environ_of(data: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the processes that `hostler up` runs on the folder `data`. Raises Failed."""
    result = dict(environ)
    redis, s3, secret = data / "redis/hostler.json", data / "s3/hostler.json", data / "secret_key"
    try:
        if redis.exists() and not environ.get("REDIS_URL"):
            known = json.loads(redis.read_text())
            result["REDIS_URL"] = f"redis://:{known['password']}@127.0.0.1:{known['port']}/0"
        if s3.exists() and not environ.get("S3_ENDPOINT_URL"):
            known = json.loads(s3.read_text())
            result["S3_ENDPOINT_URL"] = f"http://127.0.0.1:{known['ports']['s3']}"
            result["S3_ACCESS_KEY_ID"], result["S3_SECRET_ACCESS_KEY"] = (
                known["access_key"],
                known["secret_key"],
            )
        if secret.exists() and not environ.get("HOSTLER_SECRET_KEY"):
            result["HOSTLER_SECRET_KEY_FILE"] = str(secret)
    except (OSError, ValueError, KeyError) as error:
        raise Failed(f"The folder {data} cannot be understood: {error}.") from None
    if not (data / "lock").exists():
        raise Failed(f"{data} is not a folder of hostler up.", hint=f"hostler up --data {data}")
    return result


def show(name: str, status: str, message: str, remedy: str | None) -> None:
    """Print what one check found, and how to mend it."""
    line = Text(f"{MARKS[status]} {name:<18} ", style=rendering.STATUS_STYLES[status])
    line.append(rendering.harmless(message), style="default")
    rendering.stdout().print(line)
    if remedy:
        rendering.stdout().print(Text(f"{'':<21}{rendering.harmless(remedy)}", style="dim"))
