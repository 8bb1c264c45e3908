"""How thoroughly the rules are searched: shortly by default, at length under HYPOTHESIS_PROFILE=nightly."""

import os

import hypothesis
import pytest
from hypothesis import HealthCheck, settings

# A failure prints what is needed to have it again; nothing is kept in a folder.
_COMMON = {
    "database": None, "deadline": None, "print_blob": True,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}  # fmt: skip
pytest.register_assert_rewrite("job_invariants")  # so that a failure shows what differs
settings.register_profile("short", max_examples=20, stateful_step_count=50, **_COMMON)
settings.register_profile("nightly", max_examples=150, stateful_step_count=100, **_COMMON)


@pytest.fixture(scope="session")
def nightly() -> bool:
    """Whether there is time to search at length."""
    return os.environ.get("HYPOTHESIS_PROFILE") == "nightly"  # noqa: TID251  a test runner may ask


@pytest.fixture(scope="session")
def search(nightly: bool) -> hypothesis.settings:
    """How long Hypothesis searches."""
    return settings.get_profile("nightly" if nightly else "short")
