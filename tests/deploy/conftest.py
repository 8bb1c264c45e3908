"""The version that a release is to have, when one is being made."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--release", default=None, help="the version that a tag is about to name, e.g. 0.2.0")


@pytest.fixture
def release(request: pytest.FixtureRequest) -> str | None:
    """The version that `make release-check` was given; None in every other run."""
    found: str | None = request.config.getoption("--release", default=None)
    return found
