"""Fixtures that every test may use: a real Valkey of its own, an empty database for each test, settings to match."""

import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis
from groups import pytest_xdist_make_scheduler  # noqa: F401  pytest finds this hook here
from scoreboard import (  # noqa: F401  pytest finds its hooks and fixtures here
    chance,
    evidence,
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_generate_tests,
    pytest_runtest_logreport,
    pytest_runtest_makereport,
    pytest_sessionfinish,
    pytest_terminal_summary,
)
from servers import S3, SECRET_KEY, Valkey, running_s3, start_valkey

from settings import Settings
from storage.store import Store


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Have a test that is run again begin anew, with fresh fixtures of its module, as the failed try left no others."""
    if getattr(item, "execution_count", 1) > 1 and isinstance(item, pytest.Function):
        for definitions in item._fixtureinfo.name2fixturedefs.values():
            if definitions[-1].scope == "module":
                definitions[-1].finish(item._request)


@pytest.fixture(scope="session")
def valkey() -> Iterator[Valkey]:
    """A Valkey that lives as long as the test session."""
    directory = Path(tempfile.mkdtemp(prefix="hostler-valkey-"))
    server = start_valkey(directory)
    yield server
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(10)
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def redis_client(valkey: Valkey) -> Iterator[redis.Redis]:
    """A plain client on an emptied database."""
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
        yield client


@pytest.fixture
def settings(redis_client: redis.Redis, valkey: Valkey, tmp_path: Path) -> Settings:
    """Settings that point at the test's empty Valkey, and at no object store."""
    return Settings.from_env(
        {
            "REDIS_URL": valkey.url,
            "HOSTLER_SECRET_KEY": SECRET_KEY,
            "HOSTLER_WORK_DIR": str(tmp_path / "work"),
            "HOSTLER_RATE_LIMIT": "100000",
        }
    )


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[Store]:
    """A store on the test's empty Valkey."""
    store = Store(settings)
    yield store
    await store.close()


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """A SeaweedFS that lives as long as the test session; tests take a bucket each."""
    with running_s3() as server:
        yield server


@pytest.fixture
def own_s3() -> Iterator[S3]:
    """A SeaweedFS for one test, which may kill it and start it again."""
    with running_s3() as server:
        yield server


@pytest.fixture
def settings_with_s3(settings: Settings, s3: S3) -> Iterator[Settings]:
    """`settings`, with an empty bucket that nobody else uses meanwhile."""
    bucket = s3.lend()
    yield replace(
        settings,
        s3_endpoint_url=s3.endpoint_url,
        s3_access_key_id=s3.access_key_id,
        s3_secret_access_key=s3.secret_access_key,
        s3_bucket=bucket,
    )
    s3.give_back(bucket)
