"""gunicorn's settings: `gunicorn -c python:api.gunicorn api.asgi:app`."""

import os
import sys
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from settings import BadSettings, Settings

try:
    _settings = Settings.from_env()
except BadSettings as error:
    sys.exit(str(error))
if _settings.secret_key is None:
    sys.exit("HOSTLER_SECRET_KEY is not set: 32 bytes or more, the same for web, workers and scheduler.")

bind = [f"{_settings.bind_host}:{_settings.port}", *(listener.address for listener in _settings.listen)]
workers = _settings.web_concurrency
worker_class = "api.server.Worker"
wsgi_app = "api.asgi:app"
timeout = 60  # a worker whose loop stands still for so long is replaced
graceful_timeout = 10
keepalive = 65
backlog = 2048
accesslog = None
errorlog = "-"
loglevel = "info"
_TO_STDERR = {"level": "INFO", "handlers": ["stderr"], "propagate": False}
logconfig_dict = {
    "formatters": {"ours": {"()": "integrations.logging.formatter", "form": _settings.log_format}},
    "handlers": {
        "stderr": {"class": "logging.StreamHandler", "formatter": "ours", "stream": "ext://sys.stderr"}
    },
    "root": {"level": "INFO", "handlers": ["stderr"]},
    "loggers": {"gunicorn.error": _TO_STDERR, "gunicorn.access": _TO_STDERR},
}
proc_name = "hostler-web"
control_socket_disable = True


def on_starting(server: Any) -> None:
    """Do once what all workers need; refuse to start on a Redis that may lose data, or is of another secret key."""
    _make_directory(server)
    _read_code()
    _say_who_may_come_in(server)
    _check_redis(server)


def _make_directory(server: Any) -> None:
    from api import web_directory  # noqa: PLC0415  only once, before any worker is forked
    from settings import publish  # noqa: PLC0415

    try:
        web_directory.make()
        if web_directory.path is not None:  # before the library is imported, which looks once
            (web_directory.path / "metrics").mkdir()
            publish("PROMETHEUS_MULTIPROC_DIR", str(web_directory.path / "metrics"))
    except OSError as error:
        server.log.warning(
            "For lack of a directory Socket.IO by polling needs a single process, and /metrics tells of one: %s",
            error,
        )


def _read_code() -> None:
    """Read all of the code, which each worker would else do for itself."""
    from api.realtime.socketio import library  # noqa: PLC0415

    library.read()
    import api.realtime.socketio.mount  # noqa: F401, PLC0415
    from api.app import create_app  # noqa: PLC0415
    from storage import keyring, objects  # noqa: PLC0415

    keyring.read_ahead()
    objects.read_ahead()
    create_app(_settings)  # and dropped


def _say_who_may_come_in(server: Any) -> None:
    for listener in _settings.listen:
        (server.log.info if listener.asks else server.log.warning)(_settings.announcement(listener))
    if _settings.open_registration:
        server.log.warning(
            "HOSTLER_OPEN_REGISTRATION is on: anybody who reaches this server may register an agent."
        )


def _check_redis(server: Any) -> None:
    """Exit where Redis is there, and may lose or evict what was acknowledged, or belongs to another secret key."""
    import asyncio  # noqa: PLC0415

    from storage.checks import refuse_volatile  # noqa: PLC0415
    from storage.errors import HostlerError, Unavailable  # noqa: PLC0415
    from storage.store import Store  # noqa: PLC0415

    async def check() -> None:
        store = Store(_settings)
        try:
            await refuse_volatile(store)
            await store.keyring.recognise()
        except Unavailable as error:  # it may come; until then we answer 503
            server.log.warning("Redis could not be checked: %s", error)
        finally:
            await store.close()

    try:
        asyncio.run(check())
    except HostlerError as error:
        sys.exit(str(error))


def on_exit(server: Any) -> None:
    """Leave nothing behind."""
    from api import web_directory  # noqa: PLC0415  as above

    web_directory.remove()
