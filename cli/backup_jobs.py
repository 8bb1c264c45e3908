"""`hostler backup create` and `update`: what is kept of which node, when and for how long."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import wraps
from inspect import Signature, signature
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


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What a backup job can be asked for when it is made and later: an option each, None where it is not given."""

    cron: Annotated[str | None, _option("--cron", "When, such as '0 3 * * *'; '': by hand alone.")] = None
    timezone: Annotated[str | None, _option("--timezone", "Time zone of the schedules. Default: UTC.")] = None
    jitter_s: Annotated[int | None, _option("--jitter", "Spread runs over so many seconds.", min=0)] = None
    misfire: Annotated[
        Literal["skip", "one", "all"] | None,
        _option("--misfire", "What becomes of runs that were missed. Default: one."),
    ] = None
    keep: Annotated[int | None, _option("--keep", "Newest records that are kept. Default: 7.", min=0)] = None
    daily: Annotated[int | None, _option("--daily", "And the newest of so many days.", min=0)] = None
    weekly: Annotated[int | None, _option("--weekly", "And of so many weeks.", min=0)] = None
    monthly: Annotated[int | None, _option("--monthly", "And of so many months.", min=0)] = None
    exclude: Annotated[
        list[str] | None, _option("--exclude", "Pattern to leave out; repeat it for more.")
    ] = None
    tag: Annotated[list[str] | None, _option("--tag", "A word to find it by; repeat it for more.")] = None
    limit_rate: Annotated[int | None, _option("--limit-rate", "Bytes a second; 0: no limit.", min=0)] = None
    timeout_s: Annotated[
        int | None, _option("--timeout", "Seconds that a run may take. Default: 21600.", min=10)
    ] = None
    pre: Annotated[str | None, _option("--pre", "Command of the node before.")] = None
    post: Annotated[str | None, _option("--post", "Command of the node after.")] = None
    enabled: Annotated[bool | None, _option("--enable/--disable", "Whether its schedule counts.")] = None
    drill_cron: Annotated[
        str | None, _option("--drill-cron", "When to rehearse a restore; '': by hand alone.")
    ] = None
    drill_check: Annotated[
        str | None, _option("--drill-check", "Command that checks a rehearsed restore.")
    ] = None
    drill_sample: Annotated[
        float | None, _option("--drill-sample", "Rehearse this share of the files.", min=0.0001, max=1)
    ] = None
    max_age_days: Annotated[
        float | None, _option("--max-age", "Days after which a proof is too old. Default: 35.", min=0.01)
    ] = None

    def body(self, before: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is given, as the API takes it; `before` is the backup job as it is, {} for a new one."""
        as_they_are = ("timezone", "jitter_s", "misfire", "timeout_s", "enabled")
        body: dict[str, Any] = _given({name: getattr(self, name) for name in as_they_are})
        if self.cron is not None:
            body["schedule"] = self.cron or None
        for name, words in (("excludes", self.exclude), ("tags", self.tag)):
            if words is not None:
                body[name] = [each for each in words if each]
        if self.limit_rate is not None:
            body["bandwidth_limit"] = self.limit_rate or None
        kept = {"last": self.keep, "daily": self.daily, "weekly": self.weekly, "monthly": self.monthly}
        if _given(kept):
            body["retention"] = _given(kept)
        # these two are taken whole
        hooks = {"pre": self.pre, "post": self.post}
        if _given(hooks):
            body["hooks"] = _merged(before.get("hooks"), hooks)
        drill = {
            "schedule": self.drill_cron, "command": self.drill_check, "sample": self.drill_sample,
            "max_age_days": self.max_age_days,
        }  # fmt: skip
        if _given(drill):
            known = {name: each for name, each in (before.get("drill") or {}).items() if name in drill}
            body["drill"] = _merged(known, drill)
        return body


def _with_wishes(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of Wishes, in the place of its parameter `wishes`."""

    @wraps(command)
    def called(**given: Any) -> None:
        wishes = Wishes(**{each.name: given.pop(each.name) for each in fields(Wishes)})
        command(**given, wishes=wishes)

    asked = [
        signature(Wishes).parameters.values() if name == "wishes" else [parameter]
        for name, parameter in signature(command).parameters.items()
    ]
    shown = Signature([parameter for each in asked for parameter in each])
    called.__signature__ = shown  # type: ignore[attr-defined]  # typer reads it
    called.__annotations__ = {name: each.annotation for name, each in shown.parameters.items()}
    return called


@_with_wishes
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
    dest: Annotated[str, _option("--dest", "Where below backups/ in the object store; it stays so.")] = "",
    wishes: Wishes,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Create a backup job; paths, dumps and commands need an admin."""
    body = {"name": name, "node_id": node, "volumes": _sources(volumes), **wishes.body({})}
    body |= {"dest_path": dest} if dest else {}
    with connect(url, api_key) as client:
        made = client.call("POST", JOBS, body=body)
    rendering.tell(
        made, f"Made {made['id']}. Run it now with: hostler backup run {made['id']}", as_json=as_json
    )


@_with_wishes
def update(
    backup_id: BackupId,
    *,
    name: Annotated[str | None, _option("--name", "Another name.")] = None,
    source: Annotated[
        list[str] | None,
        _option("--source", "These sources, as create takes them, instead of those there are."),
    ] = None,
    node: Annotated[str | None, _option("--node", "Node whose data they are.")] = None,
    wishes: Wishes,
    no_drill: Annotated[bool, typer.Option("--no-drill", help="Rehearse restores no longer.")] = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Change what is given of a backup job, and nothing else; '' takes a command, schedule, excludes or tags away."""
    with connect(url, api_key) as client:
        before = find(client, backup_id)
        body = wishes.body(before)
        body |= {"name": name} if name is not None else {}
        body |= {"node_id": node} if node is not None else {}
        body |= {"volumes": _sources(source)} if source else {}
        body |= {"drill": None} if no_drill else {}
        if not body:
            raise Failed("Nothing to change was given.", hint="hostler backup update --help")
        after = client.call("PUT", f"{JOBS}/{segment(before['id'])}", body=body)
    rendering.tell(after, f"Changed {', '.join(sorted(body))} of {after['id']}.", as_json=as_json)


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: each for name, each in values.items() if each is not None}


def _merged(before: Mapping[str, Any] | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was there with what is given; '' takes a value away."""
    changed = {name: each if each != "" else None for name, each in _given(given).items()}
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
