"""`hostler apps`: install products, run them, watch them, change and remove them."""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from cli import app_processes, following, rendering, watching
from cli.app_changes import AppId, Detach, OneProcess, act, ask, change, fetch, hinting, see_through
from cli.client import Client, segment
from cli.failures import Failed
from cli.options import ApiKey, Json, Limit, Offset, Url, Watch, Yes, connect

app = typer.Typer(no_args_is_help=True, help="Install products; start, watch, change and remove them.")
app.add_typer(app_processes.app)

#: How often the log of an app is looked at while it is followed, and how much of it at once.
POLL_S = 1.0
MOST_LINES = 1000


@app.command("install")
def install(
    product: Annotated[str, typer.Argument(metavar="PRODUCT", help="Id of the product.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Its configuration.", show_default=False),
    ] = None,
    *,
    version: Annotated[
        str | None, typer.Option("--version", help="Default: the newest.", show_default=False)
    ] = None,
    alias: Annotated[
        str | None,
        typer.Option("--alias", help="Name of one more instance of the product.", show_default=False),
    ] = None,
    node: Annotated[
        str | None, typer.Option("--node", help="Default: the least loaded.", show_default=False)
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", help="What the node must have.", show_default=False)
    ] = None,
    config_file: Annotated[
        Path | None,
        typer.Option("--config-file", help="Its configuration as JSON.", exists=True, dir_okay=False),
    ] = None,
    start: Annotated[bool, typer.Option("--start/--no-start", help="Start it once it is installed.")] = True,
    autostart: Annotated[
        bool, typer.Option("--autostart/--no-autostart", help="Start it again after a reboot.")
    ] = True,
    detach: Detach = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Install a product on a node, show the log of that, and start it."""
    body: dict[str, Any] = {"product": product, "start": start, "autostart": autostart}
    config = _given_config(settings or [], config_file)
    chosen = {"version": version, "alias": alias, "node": node, "tags": tag, "config": config or None}
    body |= {name: value for name, value in chosen.items() if value is not None}
    instance = f"{product}__{alias}" if alias else product
    with connect(url, api_key) as client:
        with hinting(instance):
            answer = ask(client, "POST", "/api/apps", body=body)
        see_through(client, answer, "installed", detach=detach, as_json=as_json)


@app.command("list")
def list_apps(
    *,
    node: Annotated[str | None, typer.Option("--node", help="Only those of this node.")] = None,
    product: Annotated[str | None, typer.Option("--product", help="Only those of this product.")] = None,
    limit: Limit = 100,
    offset: Offset = 0,
    watch: Watch = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """List apps, the oldest first."""
    query = {"node": node, "product": product, "limit": limit, "offset": offset}
    watching.show(
        url, api_key, lambda client: client.get("/api/apps", **query), _draw, as_json=as_json, watch=watch
    )


def _draw(answer: dict[str, Any]) -> None:
    rendering.print_table(
        ("APP", "STATUS", "VERSION", "NODE", "PROCESSES", "RESTARTS", "UP"),
        (_row(each) for each in answer["apps"]),
        empty="There are no apps. Install one with: hostler apps install PRODUCT",
    )
    rendering.tell_more(answer)


def _row(shown: dict[str, Any]) -> tuple[Any, ...]:
    instances = [one for process in shown["processes"] for one in process["instances"]]
    processes = ", ".join(
        f"{each['name']} x{each['scale']}" if each["scale"] > 1 else each["name"]
        for each in shown["processes"]
    )
    restarts = sum(one["restartCount"] for one in instances)
    uptimes = [one["uptime"] for one in instances if one["uptime"] is not None]
    since = rendering.duration(min(uptimes)) if uptimes else ""
    return (
        shown["instanceId"],
        shown["status"],
        shown["version"],
        shown["node"],
        processes,
        restarts or "",
        since,
    )


@app.command("show")
def show(app_id: AppId, url: Url = None, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Show one app: what is wished, what each instance does, which releases its node keeps."""
    with connect(url, api_key) as client:
        shown = fetch(client, app_id)
    if as_json:
        rendering.write_json(shown)
        return
    rendering.print_facts(
        (
            ("app", shown["instanceId"]),
            ("name", shown["name"]),
            ("status", shown["status"]),
            ("shall be", shown["desired"]),
            ("message", shown["message"]),
            ("error", shown["error"]),
            ("version", shown["version"]),
            ("node", shown["node"] if shown["nodeOnline"] else f"{shown['node']} (offline)"),
            ("releases", ", ".join(each["version"] for each in shown["releases"])),
            ("configured", None if shown["configured"] else "no"),
            ("autostart", "yes" if shown["autostart"] else "no"),
            ("job", shown["jobId"]),
            ("installed", rendering.ago(shown["installedAt"])),
        )
    )
    rendering.print_table(
        ("INSTANCE", "STATE", "PID", "UP", "RESTARTS", "CPU", "MEMORY", "PORT", "HEALTH", "MESSAGE"),
        (_instance_row(one) for process in shown["processes"] for one in process["instances"]),
        empty="Nothing of it runs.",
    )


def _instance_row(one: dict[str, Any]) -> tuple[Any, ...]:
    return (
        one["id"], one["state"], one["pid"], "" if one["uptime"] is None else rendering.duration(one["uptime"]),
        one["restartCount"], "" if one["cpuPercent"] is None else f"{one['cpuPercent']:.1f} %",
        "" if one["memoryBytes"] is None else rendering.size(one["memoryBytes"]), one["port"], one["health"],
        one["message"],
    )  # fmt: skip


@app.command("start")
def start(
    app_id: AppId,
    *,
    process: OneProcess = None,
    detach: Detach = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Start an app and wait until it runs; one that has failed gets its attempts back."""
    act(app_id, "start", "running", process, detach=detach, url=url, api_key=api_key, as_json=as_json)


@app.command("stop")
def stop(
    app_id: AppId,
    *,
    process: OneProcess = None,
    detach: Detach = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Stop an app with all that it has started, and wait until it is gone."""
    act(app_id, "stop", "stopped", process, detach=detach, url=url, api_key=api_key, as_json=as_json)


@app.command("restart")
def restart(
    app_id: AppId,
    *,
    process: OneProcess = None,
    detach: Detach = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Stop an app and start it again."""
    act(app_id, "restart", "restarted", process, detach=detach, url=url, api_key=api_key, as_json=as_json)


@app.command("scale")
def scale(
    app_id: AppId,
    counts: Annotated[
        list[str], typer.Argument(metavar="[PROCESS=]COUNT...", help="How many instances; 0 stops.")
    ],
    *,
    detach: Detach = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Say how many instances of a process there shall be: `hostler apps scale shop web=3 queue=2`."""
    with connect(url, api_key) as client:
        wanted = dict(_count(client, app_id, word) for word in counts)
        body = {"scale": wanted}
        change(client, app_id, "scale", body, done="scaled", detach=detach, as_json=as_json)


def _count(client: Client, app_id: str, word: str) -> tuple[str, int]:
    name, _, number = word.rpartition("=")
    if not number.isdecimal():
        raise Failed(
            f"'{word}' is not PROCESS=COUNT.", hint=f"hostler apps scale {app_id} web=3", exit_code=2
        )
    if not name:
        names = [each["name"] for each in fetch(client, app_id)["processes"]]
        if len(names) != 1:
            hint = f"hostler apps scale {app_id} {names[0] if names else 'web'}={number}"
            raise Failed(
                f"App {app_id} has the processes {', '.join(names) or 'none'}; say which.", hint=hint
            )
        name = names[0]
    return name, int(number)


@app.command("logs")
def logs(
    app_id: AppId,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl+C.")] = False,
    lines: Annotated[
        int, typer.Option("--lines", "-n", help="How many of the newest.", min=1, max=2000)
    ] = 100,
    process: OneProcess = None,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Print what an app has printed, each line with the instance that wrote it; with --json an object a line."""
    path = f"/api/apps/{segment(app_id)}/logs"
    with connect(url, api_key) as client, hinting(app_id):
        found = client.get(path, limit=lines, process=process)["lines"]
        _print_lines(found, as_json=as_json)
        if not follow:
            return
        after = found[-1]["id"] if found else "0-0"
        try:
            for each in _coming(client, path, after, process):
                _print_lines(each, as_json=as_json)
        except KeyboardInterrupt:
            raise typer.Exit(following.CANCELLED) from None


def _coming(
    client: Client, path: str, after: str, process: str | None, pause: Callable[[float], None] = time.sleep
) -> Iterator[list[dict[str, Any]]]:
    """Yield the lines after one, as they come, until the app is gone."""
    while True:
        found = client.get(path, after=after, limit=MOST_LINES, process=process)["lines"]
        yield found
        if found:
            after = found[-1]["id"]
        if len(found) < MOST_LINES:
            pause(POLL_S)


def _print_lines(found: list[dict[str, Any]], *, as_json: bool) -> None:
    for line in found:
        if as_json:
            sys.stdout.write(orjson.dumps(line).decode() + "\n")
        else:
            stream = sys.stderr if line["stream"] == "stderr" else sys.stdout
            rendering.write_output(f"{line['instance']} | {line['text']}\n", stream)
    sys.stdout.flush()


@app.command("update")
def update(
    app_id: AppId,
    *,
    version: Annotated[
        str | None, typer.Option("--version", help="Default: the newest.", show_default=False)
    ] = None,
    detach: Detach = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Update an app to a release; it goes back by itself when the new one does not come up."""
    with connect(url, api_key) as client:
        body = {"version": version} if version else {}
        change(client, app_id, "update", body, done="updated", detach=detach, as_json=as_json)


@app.command("rollback")
def rollback(
    app_id: AppId,
    *,
    version: Annotated[
        str | None, typer.Option("--version", help="Default: the one before.", show_default=False)
    ] = None,
    detach: Detach = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Go back to a release that the node has kept; `hostler apps show` lists them."""
    with connect(url, api_key) as client:
        body = {"version": version} if version else {}
        change(client, app_id, "rollback", body, done="rolled back", detach=detach, as_json=as_json)


@app.command("config")
def config(
    app_id: AppId,
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="What to change; values are JSON, else text."),
    ] = None,
    *,
    file: Annotated[
        Path | None,
        typer.Option("--file", help="The whole configuration as JSON.", exists=True, dir_okay=False),
    ] = None,
    detach: Detach = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Show an app's configuration, secrets hidden; or change it, and restart the app with that."""
    path = f"/api/apps/{segment(app_id)}/config"
    with connect(url, api_key) as client:
        with hinting(app_id):
            known = client.get(path)
        if not settings and file is None:
            _show_config(known, as_json=as_json)
            return
        base = {} if file is not None else known["config"]
        with hinting(app_id):
            given = _given_config(settings or [], file)
            answer = ask(client, "PUT", path, body={"config": {**base, **given}})
        see_through(client, answer, "configured", detach=detach, as_json=as_json)


def _show_config(known: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        rendering.write_json(known)
        return
    described = (known["schema"] or {}).get("properties", {})
    required = (known["schema"] or {}).get("required", [])
    rendering.print_table(
        ("KEY", "VALUE", "DESCRIPTION"),
        (
            (
                f"{name} *" if name in required else name,
                _shown(known["config"].get(name)),
                described.get(name, {}).get("description") or described.get(name, {}).get("title") or "",
            )
            for name in dict.fromkeys([*described, *known["config"]])
        ),
        empty="It has no configuration.",
    )


def _shown(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else orjson.dumps(value).decode()


def _given_config(words: list[str], file: Path | None) -> dict[str, Any]:
    """Return what is given as KEY=VALUE, on top of a file. Raises Failed."""
    given: dict[str, Any] = {}
    if file is not None:
        try:
            given = orjson.loads(file.read_bytes())
        except orjson.JSONDecodeError as error:
            raise Failed(f"{file} is not JSON: {error}.") from None
        if not isinstance(given, dict):
            raise Failed(f"{file} must hold a JSON object.")
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise Failed(f"'{word}' is not KEY=VALUE.", exit_code=2)
        try:
            given[name] = orjson.loads(value)
        except orjson.JSONDecodeError:
            given[name] = value
    return given


@app.command("uninstall")
def uninstall(
    app_id: AppId,
    *,
    keep_data: Annotated[bool, typer.Option("--keep-data", help="Leave its data on the node.")] = False,
    abandon: Annotated[
        bool, typer.Option("--abandon", help="Its node is away for good: drop the record alone.")
    ] = False,
    yes: Yes = False,
    detach: Detach = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Stop an app and remove it from its node, with its data unless that is to stay."""
    with connect(url, api_key) as client:
        fetch(client, app_id)
        what = "from the list alone" if abandon else "but its data" if keep_data else "and all its data"
        rendering.ask(f"Remove {app_id} {what}?", yes=yes)
        with hinting(app_id):
            flags = {"keepData": keep_data, "abandon": abandon}
            query = {name: "true" for name, given in flags.items() if given}
            answer = ask(client, "DELETE", f"/api/apps/{segment(app_id)}", query=query)
        if abandon:
            rendering.tell(answer, f"{app_id} is forgotten.", as_json=as_json)
            return
        see_through(client, answer, "gone", detach=detach, as_json=as_json)


@app.command("import")
def import_cbox(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A cbox-init.yaml.", exists=True, dir_okay=False)
    ],
    *,
    node: Annotated[
        str | None, typer.Option("--node", help="Default: the least loaded.", show_default=False)
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", help="What the node must have.", show_default=False)
    ] = None,
    detach: Detach = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Install each process of a cbox-init.yaml as an app, or update those of an earlier import."""
    body: dict[str, Any] = {"content": file.read_text(encoding="utf-8", errors="replace"), "tags": tag or []}
    body |= {"node": node} if node else {}
    with connect(url, api_key) as client:
        answer = client.call("POST", "/api/apps/import/cbox", body=body, repeatable=True)
        failed = []
        for each in answer["processes"]:
            if each["jobId"] and not detach:
                job = following.watch(client, each["jobId"], quiet=as_json)
                failed += [each["instanceId"]] if job["status"] != "completed" else []
    if as_json:
        rendering.write_json(answer)
    else:
        _tell_import(answer)
    if failed:
        raise Failed(
            f"Not installed, or not well: {', '.join(failed)}.", hint=f"hostler apps show {failed[0]}"
        )


def _tell_import(answer: dict[str, Any]) -> None:
    rendering.print_table(
        ("APP", "ACTION", "NODE"),
        ((each["instanceId"], each["action"], each["node"]) for each in answer["processes"]),
        empty="The file names no processes.",
    )
    if answer["ignored"]:
        rendering.say(f"Without a meaning here: {', '.join(answer['ignored'])}.", style="yellow")
    api = answer["api"]
    if api["enabled"]:
        asks = "+auth" if api["keyId"] else ""
        rendering.say(
            f"For its clients on port {api['port']}: hostler up --listen cbox{asks}=127.0.0.1:{api['port']}"
        )
