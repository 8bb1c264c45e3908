"""`hostler backup create` and `update`: what is kept of which node, when and for how long."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import orjson
import typer

from cli import rendering
from cli.backup_finding import JOBS, BackupId, find
from cli.client import segment
from cli.failures import Failed
from cli.options import ApiKey, Json, Url, connect

_DUMP = '{"type": "postgresql", "database": "shop"}'


def _option(name: str, explained: str, **more: Any) -> Any:
    return typer.Option(name, help=explained, show_default=False, **more)


Node = Annotated[str | None, _option("--node", "Node whose data they are.")]
Cron = Annotated[str | None, _option("--cron", "When, such as '0 3 * * *'; '': by hand alone.")]
Timezone = Annotated[str | None, _option("--timezone", "Time zone of the schedules. Default: UTC.")]
Jitter = Annotated[int | None, _option("--jitter", "Spread runs over so many seconds.", min=0)]
Misfire = Annotated[
    Literal["skip", "one", "all"] | None,
    _option("--misfire", "What becomes of runs that were missed. Default: one."),
]
Keep = Annotated[int | None, _option("--keep", "Newest records that are kept. Default: 7.", min=0)]
Daily = Annotated[int | None, _option("--daily", "And the newest of so many days.", min=0)]
Weekly = Annotated[int | None, _option("--weekly", "And of so many weeks.", min=0)]
Monthly = Annotated[int | None, _option("--monthly", "And of so many months.", min=0)]
Exclude = Annotated[list[str] | None, _option("--exclude", "Pattern to leave out; repeat it for more.")]
Tag = Annotated[list[str] | None, _option("--tag", "A word to find it by; repeat it for more.")]
LimitRate = Annotated[int | None, _option("--limit-rate", "Bytes a second; 0: no limit.", min=0)]
Timeout = Annotated[int | None, _option("--timeout", "Seconds that a run may take. Default: 21600.", min=10)]
Pre = Annotated[str | None, _option("--pre", "Command of the node before.")]
Post = Annotated[str | None, _option("--post", "Command of the node after.")]
Enabled = Annotated[bool | None, _option("--enable/--disable", "Whether its schedule counts.")]
DrillCron = Annotated[str | None, _option("--drill-cron", "When to rehearse a restore; '': by hand alone.")]
DrillCheck = Annotated[str | None, _option("--drill-check", "Command that checks a rehearsed restore.")]
DrillSample = Annotated[
    float | None, _option("--drill-sample", "Rehearse this share of the files.", min=0.0001, max=1)
]
MaxAge = Annotated[
    float | None, _option("--max-age", "Days after which a proof is too old. Default: 35.", min=0.01)
]


def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What people call it.")],
    volumes: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help=f"Paths of the node, app:ID, names of Docker volumes; or a dump as JSON, such as {_DUMP}.",
        ),
    ],
    *,
    node: Annotated[str, typer.Option("--node", help="Node whose data they are.")],
    cron: Cron = None,
    timezone: Timezone = None,
    jitter_s: Jitter = None,
    misfire: Misfire = None,
    keep: Keep = None,
    daily: Daily = None,
    weekly: Weekly = None,
    monthly: Monthly = None,
    exclude: Exclude = None,
    tag: Tag = None,
    dest: Annotated[str, _option("--dest", "Where below backups/ in the object store; it stays so.")] = "",
    limit_rate: LimitRate = None,
    timeout_s: Timeout = None,
    pre: Pre = None,
    post: Post = None,
    enabled: Enabled = None,
    drill_cron: DrillCron = None,
    drill_check: DrillCheck = None,
    drill_sample: DrillSample = None,
    max_age_days: MaxAge = None,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Create a backup job; paths, dumps and commands need an admin."""
    body = {
        "name": name,
        "node_id": node,
        "volumes": _sources(volumes),
        **({"dest_path": dest} if dest else {}),
    }
    body |= _fields(
        {}, cron=cron, timezone=timezone, jitter_s=jitter_s, misfire=misfire, exclude=exclude, tag=tag, pre=pre,
        limit_rate=limit_rate, timeout_s=timeout_s, post=post, enabled=enabled,
        retention={"last": keep, "daily": daily, "weekly": weekly, "monthly": monthly},
        drill={"schedule": drill_cron, "command": drill_check, "sample": drill_sample, "max_age_days": max_age_days},
    )  # fmt: skip
    with connect(url, api_key) as client:
        made = client.call("POST", JOBS, body=body)
    rendering.tell(
        made, f"Made {made['id']}. Run it now with: hostler backup run {made['id']}", as_json=as_json
    )


def update(
    backup_id: BackupId,
    *,
    name: Annotated[str | None, _option("--name", "Another name.")] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(
            "--source",
            help="These sources, as create takes them, instead of those there are.",
            show_default=False,
        ),
    ] = None,
    node: Node = None,
    cron: Cron = None,
    timezone: Timezone = None,
    jitter_s: Jitter = None,
    misfire: Misfire = None,
    keep: Keep = None,
    daily: Daily = None,
    weekly: Weekly = None,
    monthly: Monthly = None,
    exclude: Exclude = None,
    tag: Tag = None,
    limit_rate: LimitRate = None,
    timeout_s: Timeout = None,
    pre: Pre = None,
    post: Post = None,
    enabled: Enabled = None,
    drill_cron: DrillCron = None,
    drill_check: DrillCheck = None,
    drill_sample: DrillSample = None,
    max_age_days: MaxAge = None,
    no_drill: Annotated[bool, typer.Option("--no-drill", help="Rehearse restores no longer.")] = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Change what is given of a backup job, and nothing else; '' takes a command, schedule, excludes or tags away."""
    with connect(url, api_key) as client:
        before = find(client, backup_id)
        body = _fields(
            before, cron=cron, timezone=timezone, jitter_s=jitter_s, misfire=misfire, exclude=exclude, tag=tag, pre=pre,
            limit_rate=limit_rate, timeout_s=timeout_s, post=post, enabled=enabled,
            retention={"last": keep, "daily": daily, "weekly": weekly, "monthly": monthly},
            drill={
                "schedule": drill_cron, "command": drill_check, "sample": drill_sample, "max_age_days": max_age_days,
            },
        )  # fmt: skip
        body |= {"name": name} if name is not None else {}
        body |= {"node_id": node} if node is not None else {}
        body |= {"volumes": _sources(source)} if source else {}
        body |= {"drill": None} if no_drill else {}
        if not body:
            raise Failed("Nothing to change was given.", hint="hostler backup update --help")
        after = client.call("PUT", f"{JOBS}/{segment(before['id'])}", body=body)
    rendering.tell(after, f"Changed {', '.join(sorted(body))} of {after['id']}.", as_json=as_json)


def _fields(
    before: Mapping[str, Any], *, cron: str | None, exclude: list[str] | None, tag: list[str] | None,
    limit_rate: int | None, pre: str | None, post: str | None, retention: Mapping[str, int | None],
    drill: Mapping[str, Any], **same: Any,
) -> dict[str, Any]:  # fmt: skip
    """Return what the options ask for, as the API takes it; `before` is the backup job as it is, {} for a new one."""
    body = {name: each for name, each in same.items() if each is not None}
    if cron is not None:
        body["schedule"] = cron or None
    for name, words in (("excludes", exclude), ("tags", tag)):
        if words is not None:
            body[name] = [each for each in words if each]
    if limit_rate is not None:
        body["bandwidth_limit"] = limit_rate or None
    if kept := {name: each for name, each in retention.items() if each is not None}:
        body["retention"] = kept
    # these two are taken whole
    hooks = {"pre": pre, "post": post}
    if any(each is not None for each in hooks.values()):
        body["hooks"] = _merged(before.get("hooks"), hooks)
    if any(each is not None for each in drill.values()):
        known = {name: each for name, each in (before.get("drill") or {}).items() if name in drill}
        body["drill"] = _merged(known, drill)
    return body


def _merged(before: Mapping[str, Any] | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was there with what is given; '' takes a value away."""
    changed = {name: each if each != "" else None for name, each in given.items() if each is not None}
    return {**(before or {}), **changed}


def _sources(words: list[str]) -> list[Any]:
    return [_source(each) for each in words]


def _source(word: str) -> Any:
    if not word.startswith("{"):
        return word
    try:
        return orjson.loads(word)
    except ValueError:
        raise Failed(f"{rendering.one_line(word)} is no JSON.") from None
