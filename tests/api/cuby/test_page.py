"""The API page's own examples, letter by letter: only the key is one of ours, and curl is led to the test's port."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from servers import free_port

from cuby.conftest import Fleet

KEY = "1b4e28ba-2fa1-4d2e-883f-0016d3cca427"
INSTALL = r"""curl -X POST http://localhost:3847/api/install \
  -H "Content-Type: application/json" \
  -H "Authorization: Bearer DEIN_API_KEY" \
  -d '{"products": [{"productId": "processcube-engine"}]}'"""
INSTALL_WITH_ALIAS = r"""curl -X POST http://localhost:3847/api/install \
  -H "Content-Type: application/json" \
  -H "Authorization: Bearer DEIN_API_KEY" \
  -d '{"products": [{"productId": "processcube-engine", "alias": "staging"}]}'"""
HEALTH = "curl http://localhost:3847/api/health"
CONFIG = 'curl -H "Authorization: Bearer DEIN_API_KEY" http://localhost:3847/api/config'
START = r"""curl -X POST -H "Authorization: Bearer DEIN_API_KEY" \
  http://localhost:3847/api/products/processcube-engine/start"""
LOGS = r"""curl -H "Authorization: Bearer DEIN_API_KEY" \
  http://localhost:3847/api/products/processcube-engine/logs?limit=50"""


@pytest.fixture
async def curl(fleet: Fleet, tmp_path: Path) -> AsyncIterator[Any]:
    """Run an example of the page, and return what it prints."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    port = free_port()
    config = uvicorn.Config(
        fleet.hostler.app, host="127.0.0.1", port=port, lifespan="off", log_level="critical"
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        assert not task.done(), task
        await asyncio.sleep(0.005)
    (tmp_path / ".curlrc").write_text(
        f'connect-to = "localhost:3847:127.0.0.1:{port}"\nsilent\nnoproxy = "*"\n'
    )

    async def run(command: str) -> Any:
        spoken = command.replace("DEIN_API_KEY", KEY)
        process = await asyncio.create_subprocess_shell(
            spoken, stdout=asyncio.subprocess.PIPE, env={"CURL_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
        )
        printed, _ = await process.communicate()
        assert process.returncode == 0, command
        return json.loads(printed)

    yield run
    server.should_exit = True
    await task


async def test_the_pages_examples_work_as_they_stand(fleet: Fleet, curl: Any) -> None:
    await fleet.offer()
    assert (await fleet.admin.post("/api/config/apikey", json={"apiKey": KEY})).status_code == 200
    health = await curl(HEALTH)
    assert health["status"] == "ok"
    assert health["timestamp"]
    assert (await curl(CONFIG))["products"] == []
    assert (await curl(INSTALL))["products"][0]["instanceId"] == "processcube-engine"
    assert (await curl(INSTALL_WITH_ALIAS))["products"][0]["instanceId"] == "processcube-engine__staging"
    await fleet.node.carry_out()
    assert (await curl(START))["status"] == "running"
    await fleet.node.say("processcube-engine", "web", *(f"line {number}" for number in range(60)))
    assert len((await curl(LOGS))["logs"]) == 50
    assert [each["instanceId"] for each in (await curl(CONFIG))["products"]] == [
        "processcube-engine",
        "processcube-engine__staging",
    ]
