"""Runs of scheduled and oneshot processes: asked for by hand, kept in a history, carried out by a later worker."""

import asyncio

from controls import SLEEP, FakeControl, Running, has, shell, soon, wished

from workers.supervisor import supervisor as module


async def test_runs_that_are_asked_for_by_hand_are_kept_in_a_history(
    node: Running, control: FakeControl
) -> None:
    job = {"command": "exit 7", "type": "scheduled", "schedule": "0 0 1 1 *"}
    node.install("a", {"report": job})
    await soon(lambda: "a" in control.told and control.told["a"][2]["report"].next_ms, "it is armed")
    control.change("a", wishes=wished(control.apps["a"], "report", triggers=2))
    await soon(lambda: len(control.runs) == 2, "both have run")
    await soon(has(control, "a"), "nothing is left of them")
    told = control.told["a"][2]["report"]
    assert {(run.exit_code, run.cause) for run in control.runs.values()} == {(7, "trigger")}
    assert (told.run_count, told.last_exit_code, told.success_rate) == (2, 7, 0.0)
    control.change("a", wishes=wished(control.apps["a"], "report", paused=True))
    await soon(lambda: control.told["a"][2]["report"].next_ms is None, "it is paused")


async def test_runs_that_were_asked_for_and_have_not_begun_end_with_a_stop(
    node: Running, control: FakeControl
) -> None:
    job = {"command": SLEEP, "type": "scheduled", "schedule": "0 0 1 1 *"}
    node.install("a", {"report": job})
    await soon(lambda: "a" in control.told and control.told["a"][2]["report"].next_ms, "it is armed")
    control.change("a", wishes=wished(control.apps["a"], "report", triggers=2))
    await soon(has(control, "a", report_0="running"), "one runs, and one waits for it")
    control.change("a", desired="stopped")
    await soon(has(control, "a"), "nothing runs")
    await asyncio.sleep(3 * module.TICK_S)
    assert has(control, "a")(), "what is stopped stays so"
    assert control.told["a"][2]["report"].run_count == 1


async def test_runs_that_were_asked_for_are_carried_out_by_a_later_worker(
    node: Running, control: FakeControl
) -> None:
    command = shell('until [ -e "$HOSTLER_DATA_DIR/go" ]; do sleep 0.05; done')
    node.install("a", {"report": {"command": command, "type": "scheduled", "schedule": "0 0 1 1 *"}})
    await soon(lambda: "a" in control.told and control.told["a"][2]["report"].next_ms, "it is armed")
    control.change("a", wishes=wished(control.apps["a"], "report", triggers=2))
    await soon(has(control, "a", report_0="running"), "one runs, and one waits for it")
    await node.again()
    await soon(has(control, "a", report_0="running"), "it was taken over")
    assert node.now is not None
    cared = node.now.supervised("a")
    assert [cared.runs.of("report", number) for number in (1, 2)] == [None, None], "neither is over"
    (node.settings.apps_dir / "a" / "data" / "go").touch()
    await soon(lambda: len(control.runs) == 2, "both have run")
    assert {(run.exit_code, run.cause) for run in control.runs.values()} == {(0, "trigger")}
    for number in (1, 2):
        run = cared.runs.of("report", number)
        assert run is not None
        assert run.exit_code == 0


async def test_each_run_of_a_oneshot_process_is_kept_whatever_brought_it_about(
    node: Running, control: FakeControl
) -> None:
    node.install("a", {"once": {"command": "exit 4", "type": "oneshot", "restart": {"policy": "never"}}})
    await soon(lambda: [run.cause for run in control.runs.values()] == ["start"], "its first run is kept")
    told = control.instance("a", "once-0")
    (run,) = control.runs.values()
    assert told is not None
    assert (run.exit_code, run.started_ms, run.process) == (4, told.started_ms, "once")
    control.change("a", wishes=wished(control.apps["a"], "once", triggers=1))
    await soon(
        lambda: [run.cause for run in control.runs.values()] == ["start", "trigger"], "the second, too"
    )


async def test_a_run_that_ended_while_redis_was_away_is_kept_though_its_worker_died(
    node: Running, control: FakeControl
) -> None:
    waits = 'while [ ! -e "$HOSTLER_DATA_DIR/go" ]; do sleep 0.05; done; exit 4'
    once = {"command": shell(waits), "type": "oneshot", "restart": {"policy": "never"}}
    node.install("a", {"once": once})
    await soon(has(control, "a", once_0="running"), "it runs")
    assert node.now is not None
    places = node.now.places("a")
    control.away = True
    (places.data / "go").touch()
    await soon(lambda: b"untold" in places.state.read_bytes(), "its end is remembered")
    left = places.state.read_bytes()
    await node.end()
    places.state.write_bytes(left)  # as one that is killed leaves it
    node.start()
    control.away = False
    await soon(lambda: [run.exit_code for run in control.runs.values()] == [4], "it is told of")
    await soon(lambda: b"untold" not in places.state.read_bytes(), "and not any more")
