"""`hostler autoscale advise`: what it asks for, and what it shows of the answer."""

import json
from typing import Any

import pytest
from fake_server import Answer, FakeServer

from cli.main import main


def pool(**changes: Any) -> dict[str, Any]:
    return {
        "tags": [], "depth": 0, "running": 0, "oldestAgeSeconds": 0.0, "meanRunSeconds": None, "workers": 1,
        "slots": 2, "slotsPerWorker": 2.0, "estimatedDrainSeconds": 0.0, "slotsNeeded": 0, "workersNeeded": 0,
        **changes,
    }  # fmt: skip


def answer(*pools: dict[str, Any], target: float = 60.0) -> Answer:
    return Answer(body={
        "timestamp": "2026-01-25T10:30:00Z", "targetSeconds": target, "queues": [], "pools": list(pools),
        "nodes": {"depth": 0, "running": 0, "oldestAgeSeconds": 0.0},
        "depth": sum(each["depth"] for each in pools), "workersNeeded": sum(each["workersNeeded"] for each in pools),
    })  # fmt: skip


def test_advice_is_given_for_each_set_of_tags(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    gpu = pool(
        tags=["gpu", "linux"], depth=90, oldestAgeSeconds=125.0, meanRunSeconds=3.4, workers=0, slots=0,
        estimatedDrainSeconds=None, workersNeeded=6,
    )  # fmt: skip
    server.routes["GET /api/queues"] = [answer(pool(running=2, workersNeeded=1), gpu, target=30.0)]
    assert main(["autoscale", "advise", "--target", "30"]) == 0
    shown = capsys.readouterr()
    (row,) = (line for line in shown.out.splitlines() if "gpu+linux" in line)
    for word in ("90", "2 min 5 s", "3.4 s", "0 workers", "never: nobody serves these", "6"):
        assert word in row
    assert "(none)" in shown.out
    assert "7 workers would start what waits within 30 s." in shown.err
    assert server.asked[-1].query == {"targetSeconds": "30.0"}


def test_programs_get_the_answer_as_it_is(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.routes["GET /api/queues"] = [answer(pool())]
    assert main(["autoscale", "advise", "--tags", "gpu,linux", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["workersNeeded"] == 0
    assert server.asked[-1].query == {"targetSeconds": "60.0", "tags": "gpu,linux"}


def test_a_fleet_without_load_needs_nobody(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.routes["GET /api/queues"] = [answer(pool())]
    assert main(["autoscale", "advise"]) == 0
    assert "Nothing waits; 0 workers would keep up with what runs." in capsys.readouterr().err


@pytest.mark.parametrize("target", ["0", "-1", "soon", "100000"])
def test_a_target_that_makes_no_sense_is_refused_before_anybody_is_asked(
    server: FakeServer, target: str
) -> None:
    assert main(["autoscale", "advise", "--target", target]) == 2
    assert server.asked == []
