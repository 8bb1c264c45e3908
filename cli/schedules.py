"""`hostler schedules`: the jobs that recur; they are made by `hostler submit --cron`."""

from typing import Annotated, Any

import typer

from cli import rendering, watching
from cli.client import segment
from cli.options import ApiKey, Json, Limit, Offset, Url, Watch, connect

app = typer.Typer(no_args_is_help=True, help="Look at the jobs that recur, and end them.")
ScheduleId = Annotated[str, typer.Argument(metavar="SCHEDULE", help="Id of the schedule.")]


@app.command("list")
def list_schedules(
    *,
    limit: Limit = 20,
    offset: Offset = 0,
    watch: Watch = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """List schedules, the next to come first."""

    def draw(answer: dict[str, Any]) -> None:
        rendering.print_table(
            ("SCHEDULE", "NEXT", "CRON", "ZONE", "BY", "COMMAND"),
            (
                (
                    each["scheduleId"],
                    rendering.until(each["nextAt"]),
                    each["cron"],
                    each["timezone"],
                    each["createdBy"],
                    rendering.one_line(each["name"] or each["command"]),
                )
                for each in answer["schedules"]
            ),
            empty="There are no schedules. Make one with: hostler submit 'echo hello' --cron '0 3 * * *'",
        )
        rendering.tell_more(answer)

    watching.show(
        url, api_key, lambda client: client.get("/api/schedules", limit=limit, offset=offset), draw,
        as_json=as_json, watch=watch,
    )  # fmt: skip


@app.command("show")
def show(schedule_id: ScheduleId, url: Url = None, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Show one schedule, and the job that waits for its next time."""
    with connect(url, api_key) as client:
        schedule = client.get(f"/api/schedules/{segment(schedule_id)}")["schedule"]
    if as_json:
        rendering.write_json(schedule)
        return
    rendering.print_facts(
        (
            ("schedule", schedule["scheduleId"]),
            ("name", schedule["name"]),
            ("command", schedule["command"]),
            ("cron", schedule["cron"]),
            ("time zone", schedule["timezone"]),
            ("missed", "run once" if schedule["misfire"] == "one" else schedule["misfire"]),
            ("next", f"{schedule['nextAt']} ({rendering.until(schedule['nextAt'])})"),
            ("job", schedule["jobId"]),
            ("made by", schedule["createdBy"]),
            ("made", rendering.ago(schedule["createdAt"])),
        )
    )


@app.command("end")
def end(schedule_id: ScheduleId, url: Url = None, api_key: ApiKey = None, as_json: Json = False) -> None:
    """End a schedule: the job that waits is cancelled, one that runs goes on."""
    with connect(url, api_key) as client:
        answer = client.call("DELETE", f"/api/schedules/{segment(schedule_id)}")
    rendering.tell(answer, f"Schedule {schedule_id} has ended.", as_json=as_json)
