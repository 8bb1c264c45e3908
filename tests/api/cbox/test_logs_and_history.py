"""What processes print and use, what schedules do: cbox-init's undocumented routes."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from whole import Hostler

from api.cbox import schedule, words
from storage import apps
from storage.apps import Run, Sample, ScheduleState

TASKS = {
    "backup": {"command": ["backup"], "type": "scheduled", "schedule": "0 3 * * *"},
    "migrate": {"command": ["migrate"], "type": "oneshot"},
}


async def test_the_newest_lines_of_a_process_are_read_with_their_instances(fleet: Any) -> None:
    await fleet.install("web", {"web": {"command": ["web"], "scale": 2}})
    await fleet.node.say("web", "web", *(f"line {number}" for number in range(5)), index=1)
    answer = (await fleet.viewer.get("/api/v1/processes/web/logs", params={"limit": "2"})).json()
    assert (answer["process"], answer["limit"], answer["count"]) == ("web", 2, 2)
    assert [each["message"] for each in answer["logs"]] == ["line 3", "line 4"]
    last = answer["logs"][-1]
    assert set(last) == {"timestamp", "process", "instance", "stream", "level", "message"}
    assert (last["process"], last["instance"], last["stream"]) == ("web", "web-1", "stdout")
    everything = (await fleet.viewer.get("/api/v1/logs")).json()
    assert (everything["scope"], everything["limit"], everything["count"]) == ("stack", 100, 5)


async def test_lines_of_one_process_are_not_those_of_its_neighbour(fleet: Any) -> None:
    await fleet.install("shop", {"web": {"command": ["web"]}, "queue": {"command": ["queue"]}})
    await fleet.node.say("shop", "web", "from web")
    await fleet.node.say("shop", "queue", "from queue")
    answer = (await fleet.viewer.get("/api/v1/processes/shop.queue/logs")).json()
    assert [(each["process"], each["message"]) for each in answer["logs"]] == [("shop.queue", "from queue")]


@pytest.mark.parametrize("limit", ["0", "-1", "x", "1e3", "99999999999"])
async def test_a_limit_without_sense_is_refused(fleet: Any, limit: str) -> None:
    await fleet.install("web")
    answer = await fleet.viewer.get("/api/v1/processes/web/logs", params={"limit": limit})
    assert answer.status_code == 400
    assert set(answer.json()) == {"error"}
    assert "limit" in answer.json()["error"]


async def test_a_parameter_that_is_given_twice_is_named(fleet: Any) -> None:
    await fleet.install("web")
    answer = await fleet.viewer.get("/api/v1/processes/web/logs?limit=1&limit=2")
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("limit: ")


class Stream:
    """A client of server-sent events, straight on the application: httpx would wait for the end of the answer."""

    def __init__(self, hostler: Hostler, path: str, query: str, **headers: str) -> None:
        self.received: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.leave: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.text = ""
        given = [(name.lower().replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
            "path": path, "raw_path": path.encode(), "query_string": query.encode(), "root_path": "",
            "headers": [(b"host", b"hostler.test"), *given], "client": ("127.0.0.1", 5), "server": ("hostler.test", 80),
        }  # fmt: skip
        sent = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> dict[str, Any]:
            if sent:
                return sent.pop()
            await self.leave
            return {"type": "http.disconnect"}

        self.task = asyncio.create_task(hostler.app(scope, receive, self.received.put))

    async def until(self, word: str) -> str:
        """Return all that came once `word` is in it."""
        async with asyncio.timeout(10):
            while word not in self.text:
                self.text += (await self.received.get()).get("body", b"").decode()
        return self.text

    async def close(self) -> None:
        """Leave, as a browser does."""
        self.leave.set_result(None)
        await self.task


@pytest.fixture
async def streams(fleet: Any) -> AsyncIterator[Any]:
    opened: list[Stream] = []

    def follow(query: str = "", **headers: str) -> Stream:
        token = fleet.viewer.headers["Authorization"]
        opened.append(Stream(fleet.hostler, "/api/v1/logs/stream", query, Authorization=token, **headers))
        return opened[-1]

    yield follow
    for each in opened:
        await each.close()


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]


async def test_lines_are_followed_as_events_called_log(fleet: Any, streams: Any) -> None:
    await fleet.install("shop", {"web": {"command": ["web"]}, "queue": {"command": ["queue"]}})
    one, every = streams("process=shop.web"), streams()
    await asyncio.gather(one.until("follows"), every.until("follows"))
    await fleet.node.say("shop", "queue", "from queue")
    await fleet.node.say("shop", "web", "from web", 'with "quotes"\x1b[31m <b>')
    text = await one.until("quotes")
    assert text.count("event: log\n") == 2
    assert [each["message"] for each in events(text)] == ["from web", 'with "quotes"\x1b[31m <b>']
    assert set(events(text)[0]) == {"timestamp", "process", "instance", "stream", "level", "message"}
    assert events(text)[0]["process"] == "shop.web"
    assert next(each["process"] for each in events(await every.until("quotes"))) == "shop.queue"


async def test_who_comes_back_with_the_id_of_its_last_line_misses_none_and_gets_none_twice(
    fleet: Any, streams: Any
) -> None:
    await fleet.install("web")
    await fleet.node.say("web", "web", "first", "second", "third")
    lines = await apps.lines(fleet.hostler.store, "web")
    again = streams("process=web", Last_Event_ID=lines[0].id)
    await again.until("third")
    await fleet.node.say("web", "web", "fourth")
    assert [each["message"] for each in events(await again.until("fourth"))] == ["second", "third", "fourth"]


@pytest.mark.parametrize("lost", ["1-0", "999999999999999-0"])
async def test_who_comes_back_with_the_id_of_a_line_that_is_lost_is_told_of_a_gap_and_follows(
    fleet: Any, streams: Any, lost: str
) -> None:
    await fleet.install("web")
    await fleet.node.say("web", "web", "first")
    again = streams("process=web", Last_Event_ID=lost)
    assert "event: gap\nid: \n" in await again.until("not delivered")
    await fleet.node.say("web", "web", "second")
    assert events(await again.until("second"))[-1]["message"] == "second"


@pytest.mark.parametrize("wrong", ["x", "1", "18446744073709551616-0", "9" * 30 + "-0"])
async def test_coming_back_with_what_is_no_id_of_a_line_is_refused(fleet: Any, wrong: str) -> None:
    await fleet.install("web")
    given = {"params": {"process": "web"}, "headers": {"Last-Event-ID": wrong}}
    answer = await fleet.viewer.get("/api/v1/logs/stream", **given)
    said = {"error": "invalid Last-Event-ID header (must be the id of a line)"}
    assert (answer.status_code, answer.json()) == (400, said)


async def test_following_what_is_not_there_is_refused(fleet: Any) -> None:
    answer = await fleet.viewer.get("/api/v1/logs/stream", params={"process": "nothing"})
    assert (answer.status_code, answer.json()) == (404, {"error": "process not found: nothing"})


async def test_samples_are_read_by_instance_and_time(fleet: Any) -> None:
    await fleet.install("web", {"web": {"command": ["web"], "scale": 2}})
    now_ms = fleet.hostler.store.now_ms()
    for age_s in (30, 20, 10):
        taken = [Sample(now_ms - age_s * 1000, "web", index, 1.5 + index, 2_000_000, 0.5) for index in (0, 1)]
        await fleet.hostler.store.call(apps.sample(fleet.node.holder, "web", taken))
    asked = {"process": "web", "instance": "web-1", "since": str((now_ms - 25_000) // 1000), "limit": "10"}
    answer = (await fleet.viewer.get("/api/v1/metrics/history", params=asked)).json()
    assert (answer["process"], answer["instance"], answer["limit"]) == ("web", "web-1", 10)
    assert answer["samples"] == len(answer["data"]) > 0
    assert answer["data"][0]["cpu_percent"] == 2.5
    for wrong in ({"instance": "web-x"}, {"instance": "other-0"}, {"process": "nothing"}):
        assert (
            await fleet.viewer.get("/api/v1/metrics/history", params={**asked, **wrong})
        ).status_code == 404
    for wrong in ({"since": "yesterday"}, {"limit": "10001"}, {"process": ""}, {"since": "9" * 30}):
        answer = await fleet.viewer.get("/api/v1/metrics/history", params={**asked, **wrong})
        assert (answer.status_code, set(answer.json())) == (400, {"error"})


async def test_a_schedule_is_shown_paused_and_resumed(fleet: Any) -> None:
    await fleet.install("tasks", TASKS)
    store = fleet.hostler.store
    app = await apps.get(store, "tasks")
    known = {"backup": ScheduleState(0, 1_800_000_000_000, 1_700_000_000_000, 4, 75.0, 0)}
    await store.call(apps.observe(fleet.node.holder, app, [], schedules=known))
    shown = await fleet.process("tasks.backup")
    assert (shown["schedule"], shown["schedule_state"], shown["type"]) == ("0 3 * * *", "idle", "scheduled")
    assert (shown["next_run"], shown["last_run"]) == (1_800_000_000, 1_700_000_000)
    assert (shown["run_count"], shown["success_rate"], shown["last_exit_code"]) == (4, 75.0, 0)
    path = "/api/v1/processes/tasks.backup/schedule"
    answer = await fleet.operator.post(f"{path}/pause")
    assert (answer.status_code, answer.json()) == (200, {"status": "paused", "process": "tasks.backup"})
    assert (await fleet.viewer.get(path)).json()["schedule"]["state"] == "paused"
    assert (await fleet.operator.post(f"{path}/resume")).json()["status"] == "resumed"
    assert (await fleet.viewer.get(path)).json()["schedule"]["state"] == "idle"
    refused = await fleet.operator.post("/api/v1/processes/tasks.migrate/schedule/pause")
    assert (refused.status_code, "not scheduled" in refused.json()["error"]) == (400, True)


async def test_a_schedule_is_triggered_with_and_without_waiting_for_it(fleet: Any) -> None:
    await fleet.install("tasks", TASKS)
    path = "/api/v1/processes/tasks.backup/schedule/trigger"
    answer = await fleet.operator.post(path)
    assert (answer.status_code, answer.json()) == (202, {"status": "triggered", "process": "tasks.backup"})
    async with fleet.node.working():
        answer = await fleet.operator.post(path, params={"sync": "true"})
    assert answer.status_code == 200
    assert answer.json() == {"status": "completed", "process": "tasks.backup", "exit_code": 0}


@pytest.mark.parametrize("ends", [True, False])
async def test_whoever_waits_for_a_long_run_hears_something_before_a_router_hangs_up(
    fleet: Any, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "SILENT_S", 0.1)
    monkeypatch.setattr(schedule, "SYNC_S", 0.4 if not ends else 60)
    await fleet.install("tasks", TASKS)
    path = "/api/v1/processes/tasks.backup/schedule/trigger"
    waiting = asyncio.create_task(fleet.operator.post(path, params={"sync": "true"}))
    if ends:
        await asyncio.sleep(0.3)  # so long a run
        async with fleet.node.working():
            answer = await waiting
        assert answer.json() == {"status": "completed", "process": "tasks.backup", "exit_code": 0}
    else:
        answer = await waiting
        assert "has not ended" in answer.json()["error"]
    assert (answer.status_code, answer.content[:1]) == (200, b" ")


async def test_runs_are_listed_for_schedules_and_for_one_shot_processes(fleet: Any) -> None:
    await fleet.install("tasks", TASKS)
    for number, (process, code, signal) in enumerate(
        [("backup", 0, None), ("backup", 3, None), ("migrate", None, 9)]
    ):
        run = Run(f"r{number}", process, 0, 1_700_000_000_000, 1_700_000_001_500, code, signal, "schedule")
        await fleet.hostler.store.call(apps.ran(fleet.node.holder, "tasks", run))
    history = (await fleet.viewer.get("/api/v1/processes/tasks.backup/schedule/history")).json()
    assert [(each["exit_code"], each["success"]) for each in history["history"]] == [(3, False), (0, True)]
    assert (history["count"], history["limit"]) == (2, 100)
    executions = (await fleet.viewer.get("/api/v1/oneshot/history")).json()["executions"]
    (only,) = executions
    assert (only["process_name"], only["exit_code"], only["duration"]) == ("tasks.migrate", -1, "1.5s")
    assert only["error"] == "ended by signal 9"


async def test_what_many_apps_have_said_and_done_is_asked_for_together_and_the_newest_is_shown(
    fleet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "AT_ONCE", 2)
    under_way, most = 0, 0

    def counted(read: Any) -> Any:
        async def counting(*args: Any, **how: Any) -> Any:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            try:
                return await read(*args, **how)
            finally:
                under_way -= 1

        return counting

    monkeypatch.setattr(apps, "lines", counted(apps.lines))
    monkeypatch.setattr(apps, "runs", counted(apps.runs))
    for number in range(3):
        name = f"app{number}"
        await fleet.install(name, {"migrate": TASKS["migrate"]})
        await fleet.node.say(name, "migrate", f"from {name}")
        run = Run(f"r{number}", "migrate", 0, 1_700_000_000_000, 1_700_000_001_000 - number, 0, None, "start")
        await fleet.hostler.store.call(apps.ran(fleet.node.holder, name, run))
    said = (await fleet.viewer.get("/api/v1/logs", params={"limit": "2"})).json()["logs"]
    assert [each["message"] for each in said] == ["from app1", "from app2"]
    assert most == 2
    most = 0
    done = (await fleet.viewer.get("/api/v1/oneshot/history", params={"limit": "2"})).json()["executions"]
    assert [(each["process_name"], each["trigger_type"]) for each in done] == [
        ("app0", "startup"), ("app1", "startup")
    ]  # fmt: skip
    assert most == 2
