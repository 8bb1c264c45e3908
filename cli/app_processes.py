"""What `hostler apps` does with schedules, runs and figures of an app's processes, and with failed installs."""

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from cli import rendering, watching
from cli.app_changes import AppId, Detach, OneProcess, act, ask, hinting, see_through
from cli.artifacts import show as show_file
from cli.client import segment
from cli.options import ApiKey, Json, Url, Watch, connect

app = typer.Typer()
Index = Annotated[int, typer.Option("--index", "-i", help="Which instance, from 0 on.", min=0)]


@app.command("trigger")
def trigger(
    app_id: AppId,
    *,
    process: OneProcess = None,
    detach: Detach = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Run a scheduled or oneshot process now, and wait for the run."""
    act(app_id, "trigger", "done", process, detach=detach, url=url, api_key=api_key, as_json=as_json)


@app.command("pause")
def pause(
    app_id: AppId,
    *,
    process: OneProcess = None,
    detach: Detach = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Let scheduled processes miss their times until they are resumed."""
    act(app_id, "pause", "paused", process, detach=detach, url=url, api_key=api_key, as_json=as_json)


@app.command("resume")
def resume(
    app_id: AppId,
    *,
    process: OneProcess = None,
    detach: Detach = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Let scheduled processes run at their times again."""
    act(app_id, "resume", "resumed", process, detach=detach, url=url, api_key=api_key, as_json=as_json)


@app.command("reinstall")
def reinstall(
    app_id: AppId, detach: Detach = False, url: Url = None, api_key: ApiKey = None, as_json: Json = False
) -> None:
    """Try a failed install again."""
    with connect(url, api_key) as client:
        with hinting(app_id):
            answer = ask(client, "POST", f"/api/apps/{segment(app_id)}/install")
        see_through(client, answer, "installed", detach=detach, as_json=as_json)


@app.command("autostart")
def autostart(
    app_id: AppId,
    on: Annotated[bool, typer.Option("--on/--off", help="Whether it comes back.")] = True,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Say whether an app comes back after its node was rebooted."""
    with connect(url, api_key) as client, hinting(app_id):
        answer = client.call("PUT", f"/api/apps/{segment(app_id)}/autostart", body={"autostart": on})
    does = "comes" if answer["autostart"] else "does not come"
    rendering.tell(answer, f"{app_id} {does} back after a reboot.", as_json=as_json)


@app.command("runs")
def runs(
    app_id: AppId,
    *,
    process: OneProcess = None,
    limit: Annotated[int, typer.Option("--limit", "-n", help="How many.", min=1, max=1000)] = 20,
    watch: Watch = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """List the runs of an app's scheduled and oneshot processes, the newest first."""

    def draw(answer: dict[str, Any]) -> None:
        rendering.print_table(
            ("PROCESS", "STARTED", "RAN", "EXIT", "CAUSE"),
            (_run_row(each) for each in answer["runs"]),
            empty=f"No process of {app_id} has had a run. Start one with: hostler apps trigger {app_id}",
        )

    path = f"/api/apps/{segment(app_id)}/runs"
    with hinting(app_id):
        watching.show(
            url, api_key, lambda client: client.get(path, process=process, limit=limit), draw,
            as_json=as_json, watch=watch,
        )  # fmt: skip


def _run_row(run: dict[str, Any]) -> tuple[Any, ...]:
    began, ended = rendering.time_of(run["startedAt"]), rendering.time_of(run["endedAt"])
    ran = rendering.duration((ended - began).total_seconds()) if began and ended else ""
    ending = f"signal {run['signal']}" if run["signal"] else run["exitCode"]
    return run["process"], rendering.ago(run["startedAt"]), ran, ending, run["cause"]


@app.command("samples")
def samples(
    app_id: AppId,
    *,
    process: OneProcess = None,
    index: Annotated[int | None, typer.Option("--index", "-i", help="This instance alone.", min=0)] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", help="How many.", min=1, max=10_000)] = 60,
    watch: Watch = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Show what an app's instances have used: CPU and memory, every five seconds of the last hour."""

    def draw(answer: dict[str, Any]) -> None:
        rendering.print_table(
            ("AT", "INSTANCE", "STATE", "CPU", "MEMORY", "RESTARTS"),
            (_sample_row(each) for each in answer["samples"]),
            empty=f"Nothing is known of {app_id} yet: it has to run for some seconds.",
        )

    path = f"/api/apps/{segment(app_id)}/samples"
    with hinting(app_id):
        watching.show(
            url, api_key, lambda client: client.get(path, process=process, index=index, limit=limit), draw,
            as_json=as_json, watch=watch,
        )  # fmt: skip


def _sample_row(sample: dict[str, Any]) -> tuple[Any, ...]:
    at = datetime.fromtimestamp(sample["timestamp"] / 1000, UTC).astimezone()
    return (
        at.strftime("%H:%M:%S"), f"{sample['process']}-{sample['index']}", sample["state"],
        f"{sample['cpuPercent']:.1f} %", rendering.size(sample["memoryBytes"]), sample["restartCount"] or "",
    )  # fmt: skip


@app.command("logfile")
def logfile(
    app_id: AppId,
    *,
    process: OneProcess = None,
    index: Index = 0,
    lines: Annotated[
        int, typer.Option("--lines", "-n", help="How many of the last.", min=1, max=10_000)
    ] = 500,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Print the end of an instance's log file, fetched from its node; it reaches further back than `logs`."""
    query = "&".join(
        f"{name}={segment(str(value))}"
        for name, value in (("process", process), ("index", index), ("lines", lines))
        if value is not None
    )
    with connect(url, api_key) as client, hinting(app_id):
        show_file(client, f"/api/apps/{segment(app_id)}/logfile?{query}", app_id)
