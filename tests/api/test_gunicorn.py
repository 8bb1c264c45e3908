"""What the web looks at before it starts."""

import asyncio
import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from settings import Settings
from storage.keyring import FOREIGN
from storage.store import Store

ROOT = Path(__file__).resolve().parents[2]


async def made_by(settings: Settings) -> None:
    store = Store(settings)
    try:
        await store.keyring.check()
    finally:
        await store.close()


def test_a_web_with_another_secret_key_does_not_start(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.run(made_by(replace(settings, secret_key="another secret key, also long enough")))
    monkeypatch.setenv("REDIS_URL", settings.redis_url)
    monkeypatch.setenv("HOSTLER_SECRET_KEY", str(settings.secret_key))
    monkeypatch.setenv("HOSTLER_ALLOW_VOLATILE", "1")
    module = runpy.run_path(str(ROOT / "api" / "gunicorn.py"))
    with pytest.raises(SystemExit, match=FOREIGN):
        module["_check_redis"](SimpleNamespace(log=SimpleNamespace(warning=print)))
