"""`hostler backup self`, `hostler rebuild` and `hostler recovery-kit`: coming back after the loss of all of Redis."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import typer

from cli import rendering
from cli.failures import Failed
from cli.options import Json
from settings import Settings, process_environment
from storage import recovery
from storage.errors import Conflict
from storage.objects import Objects
from storage.recovery import Place, Point, Rebuilt
from storage.seal import Seal
from storage.store import Store

app = typer.Typer()
T = TypeVar("T")

Data = Annotated[
    Path | None,
    typer.Option("--data", "-d", help="Work on the folder of a `hostler up`, instead of the environment."),
]
From = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="s3://BUCKET[/PREFIX][#POINT]",
        help="Where the recovery points lie, and which one. Default: this installation's own, the newest.",
    ),
]


def back_up_self(
    verify: Annotated[
        str | None,
        typer.Option("--verify", metavar="POINT", help="Make none: read this one back, or `newest`."),
    ] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Make a recovery point of Hostler itself now: users, apps, schedules, jobs, backups and the audit log, sealed.

    The scheduler makes one every HOSTLER_RECOVERY_EVERY_S seconds. It lies in the bucket; `hostler rebuild` reads it.
    """

    async def work(settings: Settings) -> Point | None:
        store = Store(_with_key(settings))
        try:
            if verify is None:
                return await recovery.keep_up(store, now=True)
            place = Place.of(store)
            point = await _choose(place, "" if verify == "newest" else verify)
            await recovery.verify(place, point)
            return point
        finally:
            await store.close()

    point = _on(data, work, running=True)
    if point is None:
        return
    if as_json:
        rendering.write_json(_as_json(point))
        return
    rendering.print_facts((
        ("verified" if verify else "recovery point", point.id),
        ("holds", _counted(point)),
        ("size", f"{rendering.size(point.size_bytes)} in {rendering.count(point.parts, 'part')}"),
        ("took", rendering.duration(point.took_ms / 1000)),
    ))  # fmt: skip


@app.command()
def rebuild(
    *,
    source: From = None,
    list_points: Annotated[bool, typer.Option("--list", help="List the recovery points and end.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the point as a whole, and write nothing.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Also where Redis is not empty: what is there goes to another database."
        ),
    ] = False,
    keep_sessions: Annotated[
        bool, typer.Option("--keep-sessions", help="Bring sessions back too: for a move that was planned.")
    ] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Bring Hostler back from a recovery point, into an empty Redis: all of it or nothing.

    Needs REDIS_URL, S3_ENDPOINT_URL, S3_BUCKET with credentials, and the HOSTLER_SECRET_KEY of before; or the folder
    of a `hostler up` that does not run (--list: or that does). Stop web and scheduler first; workers may go on.
    """
    bucket, prefix, which = _source(source)

    async def work(settings: Settings) -> Any:
        settings = _with_key(settings)
        objects = Objects(replace(settings, s3_bucket=bucket) if bucket else settings)
        place = Place(objects, Seal(str(settings.secret_key)), prefix or recovery.PREFIX)
        try:
            if list_points:
                return await recovery.every(place)
            point = await _choose(place, which)
            return await recovery.rebuild(
                settings, place, point, force=force, keep_sessions=keep_sessions, dry_run=dry_run,
                say=lambda line: None if as_json else rendering.say(line),
            )  # fmt: skip
        finally:
            objects.close()

    try:
        found = _on(data, work, running=False)
    except Conflict:
        if not list_points:
            raise
        found = _on(data, work, running=True)  # a list disturbs nobody
    if isinstance(found, Rebuilt):
        _show_rebuilt(found, dry_run=dry_run, as_json=as_json)
    elif as_json:
        rendering.write_json([_as_json(point) for point in found])
    else:
        rows = [(p.id, rendering.ago(_iso(p)), _counted(p), rendering.size(p.size_bytes)) for p in found]
        rendering.print_table(("POINT", "MADE", "HOLDS", "SIZE"), rows, empty="There are no recovery points.")


@app.command(name="recovery-kit")
def recovery_kit(
    reveal: Annotated[
        bool, typer.Option("--reveal", help="With the secret key and the passwords in the clear.")
    ] = False,
    to: Annotated[
        Path | None, typer.Option("--to", help="Write a file that only you may read, instead of to stdout.")
    ] = None,
    data: Data = None,
) -> None:
    """Print what a rebuild needs when this machine is gone: addresses, bucket, and fingerprint of the secret key.

    Keep it, with --reveal, where the bucket is not: in a safe, or in a password manager.
    """
    from cli.embedded import write_private  # noqa: PLC0415  the other commands need not wait for it

    async def work(settings: Settings) -> str:
        store = Store(_with_key(settings))
        try:
            points = await recovery.every(Place.of(store))
        finally:
            await store.close()
        return _kit(settings, points, reveal=reveal)

    text = _on(data, work, running=True)
    if to is None:
        sys.stdout.write(text)
        return
    write_private(to.absolute(), text)
    rendering.say(f"Wrote {to}. Keep it where the bucket is not.")


def _kit(settings: Settings, points: list[Point], *, reveal: bool) -> str:
    def secret(value: str | None) -> str:
        return (value or "") if reveal else "(hidden; print it with --reveal)"

    redis = urlsplit(settings.redis_url)
    if redis.password and not reveal:
        redis = redis._replace(netloc=f"{redis.username or ''}:****@{redis.netloc.rpartition('@')[2]}")
    newest = points[0].id if points else "none yet: hostler backup self"
    lines = (
        f"# Recovery kit of Hostler, printed {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.",
        f"# Key fingerprint {Seal(str(settings.secret_key)).fingerprint}; newest recovery point {newest}.",
        "# With these variables set, and a REDIS_URL that leads to an empty Redis:",
        f"#   hostler rebuild --from s3://{settings.s3_bucket}/{recovery.PREFIX}",
        f"HOSTLER_SECRET_KEY={secret(settings.secret_key)}",
        f"S3_ENDPOINT_URL={settings.s3_endpoint_url or ''}",
        f"S3_REGION={settings.s3_region}",
        f"S3_BUCKET={settings.s3_bucket}",
        f"S3_ACCESS_KEY_ID={settings.s3_access_key_id or ''}",
        f"S3_SECRET_ACCESS_KEY={secret(settings.s3_secret_access_key)}",
        f"# REDIS_URL was {urlunsplit(redis)}",
    )
    return "\n".join(lines) + "\n"


def _on(data: Path | None, work: Callable[[Settings], Awaitable[T]], *, running: bool) -> T:
    """Do `work` as the environment says, or of the folder `data`, where `up` is `running` or must not be."""
    environ = process_environment()
    if data is not None and not running:
        from cli.up import with_servers  # noqa: PLC0415  only this needs it

        return with_servers(data, environ, work, output=sys.stderr)
    if data is not None:
        from cli.doctor import environ_of  # noqa: PLC0415  as above

        environ = environ_of(data, environ)

    async def run() -> T:
        return await work(Settings.from_env(environ))

    return asyncio.run(run())


def _with_key(settings: Settings) -> Settings:
    if settings.secret_key is None:
        raise Failed(
            "HOSTLER_SECRET_KEY is not set: nothing can be opened without it.",
            hint="the same with --data FOLDER, if a hostler up keeps it there",
        )
    return settings


def _source(given: str | None) -> tuple[str, str, str]:
    """Return bucket, prefix and point of `s3://bucket/prefix#point`, each empty where it is not said. Raises Failed."""
    if given is None:
        return "", "", ""
    address, _, which = given.partition("#")
    if address and not address.startswith("s3://"):
        raise Failed(f"--from {given!r} is not s3://BUCKET[/PREFIX][#POINT].", exit_code=2)
    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    return bucket, prefix.strip("/"), which


async def _choose(place: Place, which: str) -> Point:
    """Return the point `which`, or the newest. Raises Failed when there is none."""
    if which and which != "newest":
        return await recovery.get(place, which)
    points = await recovery.every(place)
    if not points:
        raise Failed(
            f"There is no recovery point under s3://{place.objects.bucket}/{place.prefix} that this key can read.",
            hint="hostler rebuild --list",
        )
    return points[0]


def _counted(point: Point) -> str:
    return ", ".join(f"{number} {kind}" for kind, number in sorted(point.counts.items())) or "nothing"


def _iso(point: Point) -> str:
    return datetime.fromtimestamp(point.made_ms / 1000, UTC).isoformat()


def _as_json(point: Point) -> dict[str, Any]:
    return {**asdict(point), "made_at": _iso(point)}


def _show_rebuilt(done: Rebuilt, *, dry_run: bool, as_json: bool) -> None:
    point = done.point
    if as_json:
        rendering.write_json({**asdict(done), "point": _as_json(point), "dry_run": dry_run})
        return
    lost = f"what came after {_iso(point)[:19]}Z ({rendering.ago(_iso(point))})"
    facts: list[tuple[str, Any]] = [("point", point.id), ("holds", _counted(point)), ("not in it", lost)]
    if dry_run:
        facts += [("checked", f"all of it, in {rendering.duration(done.verify_s)}; nothing was written")]
    else:
        facts += [
            ("keys", f"{done.loaded} loaded"),
            (
                "jobs",
                f"{done.jobs_back_in_queues} in queues, {done.jobs_waiting} waiting for a time or for others",
            ),
            ("", f"{done.jobs_running} ran: their leases end, then their policy decides")
            if done.jobs_running
            else ("", ""),
            ("lost", f"{done.jobs_lost} that must not start twice and may have")
            if done.jobs_lost
            else ("", ""),
            (
                "audit log",
                f"{done.audit_lines} lines, "
                + (f"BROKEN at {done.audit_broken_at}" if done.audit_broken_at else "unbroken"),
            ),
            ("not believed", ", ".join(done.unbelieved[:5])),
            ("put aside", f"what was there is in database {done.aside}" if done.aside is not None else ""),
            (
                "took",
                f"{rendering.duration(done.took_s)}: checked {done.verify_s:.1f} s, loaded {done.load_s:.1f} s, "
                f"mended {done.mend_s:.1f} s",
            ),
        ]
    rendering.print_facts(facts)
    if not dry_run:
        rendering.say(
            "Start web and scheduler now. Everybody logs in again; workers register by themselves. What was revoked or "
            "changed since the recovery point has to be revoked or changed again."
        )
