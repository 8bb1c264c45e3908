"""F61: jobs without a pause while a random component dies every few seconds; in the end everything adds up."""

import random
import time

import pytest
from test_faults_of_the_web import web_of
from world import Client, World, children, strike, together

JOBS_PER_S = 20


@pytest.mark.slow
@pytest.mark.proves("F61")
def test_random_deaths_under_load_lose_nothing(
    world: World, client: Client, chance: random.Random, request: pytest.FixtureRequest, evidence: list[str]
) -> None:
    minutes = request.config.getoption("--soak-minutes")
    every_s = min(20.0, minutes * 60 / 9)
    workers = {name: world.worker(name) for name in ("soak-1", "soak-2", "soak-3")}
    struck: list[str] = []

    def kill_a_worker() -> None:
        name = chance.choice(sorted(workers))
        workers[name].kill()
        workers[name].wait()
        workers[name] = world.worker(name, wait=False)

    def kill_a_web_process() -> None:
        if victims := children(web_of(world)):
            strike(chance.choice(victims))

    def kill_the_scheduler() -> None:
        (scheduler,) = [p for p in world.stack.processes if "scheduler" in p.args and p.poll() is None]  # type: ignore[operator]
        world.stack.end(scheduler)
        world.stack.start("scheduler")

    def kill_redis() -> None:
        world.kill_redis()
        time.sleep(chance.uniform(0, 3))
        world.start_redis()

    def kill_the_object_store() -> None:
        assert world.s3 is not None
        world.s3.kill()
        time.sleep(chance.uniform(0, 3))
        world.s3.start()

    def replace_a_worker() -> None:
        name = chance.choice(sorted(workers))
        workers[name].terminate()
        workers[name].wait(30)
        workers[name] = world.worker(name, wait=False)

    deeds = (
        kill_a_worker,
        kill_a_web_process,
        kill_the_scheduler,
        kill_redis,
        kill_the_object_store,
        replace_a_worker,
    )
    kinds = (
        ("true", {}), ("sleep 0.2", {}), ("exit 3", {"retries": 1, "backoff": {"delay": 0.1}}),
        ("seq 2000", {}), ("sleep 0.1", {"concurrencyKey": "one at a time"}), ("sleep 1", {"atMostOnce": True}),
    )  # fmt: skip
    end, next_deed, number = time.monotonic() + minutes * 60, time.monotonic() + every_s, 0
    with together(16) as pool:
        submits, breaking = [], None
        began = time.monotonic()
        while time.monotonic() < end:
            words, order = kinds[number % len(kinds)] if number % 60 < 6 else kinds[number % 2]
            submits.append(pool.submit(client.insist, words, patience_s=60, **order))
            number += 1
            if time.monotonic() >= next_deed and (breaking is None or breaking.done()):
                if breaking is not None:
                    breaking.result()
                deed = chance.choice(deeds)
                struck.append(deed.__name__)
                breaking = pool.submit(deed)
                next_deed = time.monotonic() + every_s
            time.sleep(max(0.0, began + number / JOBS_PER_S - time.monotonic()))
        if breaking is not None:
            breaking.result()
        for each in submits:
            each.result()
    said = world.check(patience_s=120)
    evidence += [f"{number} submits in {minutes:g} min, {len(struck)} strikes ({', '.join(struck)})", said]
