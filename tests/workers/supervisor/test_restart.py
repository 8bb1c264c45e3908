"""Restarts: who is started again, when, and how often."""

import pytest

from storage.manifests.parts import Restart
from workers.supervisor.restart import Budget, Verdict

AGAIN, COMPLETED, FAILED = Verdict.AGAIN, Verdict.COMPLETED, Verdict.FAILED


@pytest.mark.parametrize(
    ("policy", "runs_once", "succeeded", "verdict"),
    [
        ("always", False, True, AGAIN),
        ("always", False, False, AGAIN),
        ("on-failure", False, True, COMPLETED),
        ("on-failure", False, False, AGAIN),
        ("never", False, True, FAILED),
        ("never", False, False, FAILED),
        ("on-failure", True, True, COMPLETED),
        ("on-failure", True, False, AGAIN),
        ("never", True, True, COMPLETED),
        ("never", True, False, FAILED),
    ],
)
def test_the_policy_decides_what_follows_from_an_end(
    policy: str, runs_once: bool, succeeded: bool, verdict: Verdict
) -> None:
    budget = Budget(Restart(policy=policy), runs_once)  # type: ignore[arg-type]
    assert budget.judge(succeeded=succeeded, up_s=1)[0] is verdict


def test_pauses_double_up_to_the_longest_and_the_attempts_are_spent_then() -> None:
    budget = Budget(Restart(attempts=6), runs_once=False)
    assert [budget.judge(succeeded=False, up_s=1) for _ in range(7)] == [
        (AGAIN, 5), (AGAIN, 10), (AGAIN, 20), (AGAIN, 40), (AGAIN, 60), (AGAIN, 60), (FAILED, 0)
    ]  # fmt: skip


def test_who_was_up_long_enough_has_all_attempts_back() -> None:
    budget = Budget(Restart(attempts=1), runs_once=False)
    for _ in range(5):
        assert budget.judge(succeeded=False, up_s=60) == (AGAIN, 5)
    assert budget.judge(succeeded=False, up_s=59.9) == (FAILED, 0)


def test_a_negative_window_never_gives_attempts_back() -> None:
    budget = Budget(Restart(attempts=1, stability_s=-1), runs_once=False)
    assert budget.judge(succeeded=False, up_s=1e6)[0] is AGAIN
    assert budget.judge(succeeded=False, up_s=1e6)[0] is FAILED
