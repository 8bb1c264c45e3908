"""Processes that wait for others: of the same app, of another one, and of nobody."""

import pytest
from controls import CHECK, SERVE, SLEEP, FakeControl, Running, has, shell, soon, wished

from workers.supervisor import instance


async def test_dependencies_are_waited_for_also_those_of_other_apps(
    node: Running, control: FakeControl
) -> None:
    node.install(
        "late",
        {
            "web": {"command": SLEEP, "depends_on": ["db", "base"]},
            "db": {"command": SERVE, "port": 0, "health": CHECK},
        },
    )
    await soon(lambda: control.state("late", "db-0") == "running", "the database runs")
    waiting = control.instance("late", "web-0")
    assert waiting is not None
    assert (waiting.state, waiting.message) == (
        "starting",
        "It waits for app 'base', which is not on this node.",
    )
    node.install("base", {"setup": {"command": "exit 0", "type": "oneshot"}})
    await soon(lambda: control.state("late", "web-0") == "running", "it runs")


async def test_who_depends_on_what_has_failed_fails_at_once_and_is_taken_up_with_it(
    node: Running, control: FakeControl
) -> None:
    setup = {"command": shell("sleep 0.2; test -e $HOSTLER_DATA_DIR/right"), "type": "oneshot"}
    node.install("base", {"setup": {**setup, "restart": {"policy": "never"}}})
    node.install(
        "shop",
        {"web": {"command": SLEEP, "depends_on": ["api"]}, "api": {"command": SLEEP, "depends_on": ["base"]}},
    )
    await soon(has(control, "shop", web_0="failed", api_0="failed"), "nobody waits for what will not come")
    because = "It depends on app 'base', which has failed: It ended with exit code 1."
    assert [control.message("shop", each) for each in ("api-0", "web-0")] == [
        because, f"It depends on 'api', which has failed: {because}",
    ]  # fmt: skip
    assert node.now is not None
    (node.now.places("base").data / "right").touch()
    await node.again()  # a later worker knows, too, who is not to blame
    control.change("base", wishes=wished(control.apps["base"], "setup", restarts=1))
    await soon(has(control, "shop", web_0="running", api_0="running"), "they go on by themselves")


async def test_a_oneshot_at_work_is_waited_for_longer_than_what_is_not_there(
    node: Running, control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance, "DEPENDENCY_PATIENCE_S", 0.1)
    node.install(
        "a",
        {
            "web": {"command": SLEEP, "depends_on": ["api"]},
            "api": {"command": SLEEP, "depends_on": ["migrate"]},
            "migrate": {
                "command": shell("until test -e $HOSTLER_DATA_DIR/go; do sleep 0.1; done"),
                "type": "oneshot",
            },
            "other": {"command": SLEEP, "depends_on": ["base"]},
        },
    )
    late = {"web_0": "starting", "api_0": "starting", "migrate_0": "running", "other_0": "failed"}
    await soon(has(control, "a", **late), "only what is not there is given up")
    assert node.now is not None
    (node.now.places("a").data / "go").touch()
    await soon(lambda: control.state("a", "web-0") == "running", "it starts after the oneshot")
    node.install("base", {"web": {"command": SLEEP}})
    await soon(lambda: control.state("a", "other-0") == "running", "what was given up is taken up")


async def test_apps_that_wait_for_one_another_say_so_and_fail(node: Running, control: FakeControl) -> None:
    node.install("a", {"web": {"command": SLEEP, "depends_on": ["b"]}})
    node.install("b", {"web": {"command": SLEEP, "depends_on": ["a"]}})
    await soon(has(control, "a", web_0="failed"), "one has failed")
    await soon(has(control, "b", web_0="failed"), "and so has the other")
    assert control.message("a", "web-0") == "It would have to wait for 'b', which waits for it."
