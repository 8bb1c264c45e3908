"""A node for apps: its settings, a control plane in memory, and supervisors that follow one another."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from controls import FakeControl, Running
from servers import SECRET_KEY

from settings import Settings
from workers.supervisor import ending


@pytest.fixture
def settings() -> Any:
    work = Path(tempfile.mkdtemp(prefix="hostler-test-"))
    work.chmod(0o711)
    settings = Settings.from_env({"HOSTLER_SECRET_KEY": SECRET_KEY, "HOSTLER_WORK_DIR": str(work)})
    settings.apps_dir.mkdir()
    yield settings
    asyncio.run(ending.stop_all(settings.apps_dir))
    shutil.rmtree(work)


@pytest.fixture
def control() -> FakeControl:
    return FakeControl()


@pytest.fixture
async def node(settings: Settings, control: FakeControl) -> AsyncIterator[Running]:
    running = Running(settings, control)
    running.start()
    yield running
    control.away = False
    await running.end()
