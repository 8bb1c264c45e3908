"""The simulator: against what queueing theory knows, and the rule that advises."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench import calibration, simulate
from bench.calibration import Costs
from bench.simulate import Plan
from storage import capacity

#: Parts that cost next to nothing, so that only slots make jobs wait.
FREE = Costs(
    submit_us=0.001, claim_us=0.001, output_us=0.001, settle_us=0.001, empty_claim_us=0.001, beat_us=0.001,
    wake_us=0.0, web_submits_per_s=1e9, worker_overhead_s=0.0, start_s=0.0,
)  # fmt: skip
DEAR = replace(FREE, submit_us=400, claim_us=200, output_us=100, settle_us=300)


def test_one_server_queues_as_theory_has_it() -> None:
    plan = Plan("mm1", rate_per_s=0.8, run_s=1, duration_s=60_000, workers=1, slots=1)
    found = simulate.simulate(plan, FREE)
    assert found.slot_use == pytest.approx(0.8, abs=0.03)
    assert found.wait_p50_s == pytest.approx(2.35, rel=0.2)  # M/M/1: ln(0.8 / 0.5) / 0.2
    assert found.wait_p95_s == pytest.approx(13.9, rel=0.25)  # ln(0.8 / 0.05) / 0.2


def test_the_same_plan_gives_the_same_answer_and_every_job_runs_once() -> None:
    plan = Plan("twice", trace="diurnal", rate_per_s=20, duration_s=120, run_s=1)
    first, second = simulate.simulate(plan, FREE), simulate.simulate(plan, FREE)
    assert first == second
    assert first.jobs == len(list(simulate.arrivals(plan, simulate.random.Random(plan.seed))))


def test_the_autoscaler_is_the_rule_that_advises(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[capacity.Load] = []
    advise = capacity.advise

    def spy(load: capacity.Load, **how: float) -> capacity.Advice:
        asked.append(load)
        return advise(load, **how)

    monkeypatch.setattr(capacity, "advise", spy)
    plan = Plan("burst", trace="burst", rate_per_s=0, burst_jobs=600, duration_s=60, run_s=1, start_delay_s=5)
    found = simulate.simulate(plan, FREE)
    assert asked
    assert max(load.waiting for load in asked) == 600
    # 600 s of work within 60 s need 10 slots of 2 a worker
    assert found.peak_workers == pytest.approx(5, abs=2)
    assert found.within_target > 0.7  # the others had come before anybody was ready


def test_a_fleet_grows_from_zero_and_shrinks_back_to_it() -> None:
    plan = Plan(
        "zero", trace="burst", rate_per_s=0, burst_jobs=100, duration_s=2000, run_s=5, start_delay_s=60,
        cooldown_s=60, target_s=60,
    )  # fmt: skip
    found = simulate.simulate(plan, FREE)
    assert found.jobs == 100
    assert found.wait_p50_s > 60  # nobody was there when they came
    assert found.mean_workers < found.peak_workers / 3


def test_what_redis_cannot_carry_is_said() -> None:
    found = simulate.simulate(Plan("much", rate_per_s=1500, duration_s=30, run_s=0.1, workers=200), DEAR)
    assert found.redis_busy_peak > 0.9
    assert any("Redis is busy" in each for each in found.problems)


def test_the_first_job_that_waits_wakes_all_workers_which_costs_the_more_the_more_there_are() -> None:
    plan = Plan("nearly full", rate_per_s=200, duration_s=40, run_s=5, workers=1000, slots=1)
    heard = simulate.simulate(plan, replace(FREE, wake_us=50.0))
    assert heard.redis_busy_peak > simulate.simulate(plan, FREE).redis_busy_peak + 0.05


def test_jobs_that_come_to_a_queue_wake_nobody() -> None:
    plan = Plan("full", rate_per_s=200, duration_s=20, run_s=30, workers=1000, slots=1)
    heard = simulate.simulate(plan, replace(FREE, wake_us=1.0))
    assert heard.redis_busy_peak < simulate.simulate(plan, FREE).redis_busy_peak + 0.01


def test_without_workers_jobs_wait_for_ever() -> None:
    found = simulate.simulate(Plan("none", rate_per_s=1, duration_s=10, workers=0), FREE)
    assert any("for ever" in each for each in found.problems)


def test_a_trace_of_ones_own_is_replayed(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("at_s,run_s\n0,10\n1,10\n2,10\n")
    found = simulate.simulate(Plan("mine", trace=str(trace), workers=1, slots=1), FREE)
    assert found.jobs == 3
    assert found.wait_max_s == pytest.approx(18, abs=0.1)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("when\n1\n", "no column at_s"),
        ("at_s\n5\n4\n", "line 3: times go up"),
        ("at_s,run_s\n5,-1\n", "none is below zero"),
        ("at_s\nsoon\n", "line 2: at_s and run_s are numbers"),
    ],
)
def test_a_trace_that_makes_no_sense_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(text)
    with pytest.raises(ValueError, match=complaint):
        simulate.simulate(Plan("bad", trace=str(trace), workers=1), FREE)


def test_costs_are_those_that_were_measured(tmp_path: Path) -> None:
    costs = calibration.kept()
    assert 50 < costs.job_us < 5000
    assert 0 < costs.wake_us < 50
    results = json.loads(calibration.RESULTS.read_text())
    own = next(each["own"] for each in results["figures"]["P3"]["verdicts"])
    assert costs.worker_overhead_s == pytest.approx(2 / own)
    assert "P1 at" in costs.results


def test_the_report_states_what_it_rests_on() -> None:
    outcome = simulate.simulate(Plan("small", rate_per_s=1, duration_s=10), FREE)
    text = simulate.report([outcome], FREE)
    assert all(each in text for each in simulate.ASSUMPTIONS)
    assert "waking each worker" in text
    assert "| small | " in text
