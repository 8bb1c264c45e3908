"""A web in front of a stack: gunicorn as the Procfile starts it."""

from contextlib import suppress

import httpx
from processes import ROOT, Stack, until
from servers import NO_TLS, free_port


def start_web(stack: Stack, *, processes: int = 1) -> None:
    """Start a web of so many processes, and wait until it answers at `stack.url`."""
    stack.env |= {"PORT": str(free_port()), "WEB_CONCURRENCY": str(processes)}
    stack.url = f"http://127.0.0.1:{stack.env['PORT']}"
    web = stack.start(
        "gunicorn", "-c", str(ROOT / "api" / "gunicorn.py"), "api.asgi:app", HOSTLER_HOST="127.0.0.1"
    )

    def answers() -> bool:
        assert web.poll() is None, stack.logged(web)
        with suppress(httpx.TransportError):
            return (
                httpx.get(f"{stack.url}/api/health/live", trust_env=False, verify=NO_TLS).status_code == 200
            )
        return False

    until(answers, "the web answers")
