"""Which server the command line talks to, and as whom: options, then the environment, then what `login` saved."""

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from cli.failures import Failed

if sys.platform != "win32":
    import fcntl

DEFAULT = "default"
#: What a secret is sent as. API keys begin with `cb_`.
KEY, TOKEN = "key", "token"


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server's address and what opens it.

    `context` names where a renewed token is saved; `given_by` the option or variable that goes before what is saved.
    """

    url: str
    secret: str
    context: str | None = None
    given_by: str | None = None

    @property
    def kind(self) -> str:
        """Return what the secret is: an API key, or a session's token."""
        return KEY if self.secret.startswith("cb_") else TOKEN

    def headers(self) -> dict[str, str]:
        """Return the headers that say who is asking."""
        if self.kind == KEY:
            return {"X-API-Key": self.secret}
        return {"Authorization": f"Bearer {self.secret}"}


class Contexts:
    """The file of saved servers, which only its owner may read."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        named = environ.get("HOSTLER_CONFIG")
        self.path = Path(named) if named else Path(typer.get_app_dir("hostler")) / "contexts.json"
        self.chosen = environ.get("HOSTLER_CONTEXT")

    def load(self) -> dict[str, Any]:
        """Return `{"current": name, "contexts": {name: {"url", "secret", "email"}}}`. Raises Failed."""
        try:
            known = json.loads(self.path.read_text(encoding="utf-8"))
            if not isinstance(known["contexts"], dict):
                raise TypeError
        except FileNotFoundError:
            return {"current": DEFAULT, "contexts": {}}
        except (ValueError, KeyError, TypeError):
            raise Failed(f"{self.path} cannot be understood.", hint=f"rm {self.path}") from None
        return dict(known)

    @contextlib.contextmanager
    def changing(self) -> Iterator[dict[str, Any]]:
        """Yield what is saved, to be changed in place, and save it; two commands take turns."""
        from cli.embedded import write_private  # noqa: PLC0415  costs every other command its start-up

        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(self.path.with_name(self.path.name + ".lock"), "ab") as lock:
            if sys.platform != "win32":
                fcntl.flock(lock, fcntl.LOCK_EX)
            known = self.load()
            before = json.dumps(known)
            yield known
            if json.dumps(known) != before:
                write_private(self.path, json.dumps(known, indent=2) + "\n")

    def save(self, name: str, *, url: str, secret: str, email: str | None) -> None:
        """Remember a server under `name`, and use it from now on."""
        with self.changing() as known:
            known["contexts"][name] = {"url": url, "secret": secret, "email": email}
            known["current"] = name

    def forget(self, name: str) -> None:
        """Forget a server. Safe to repeat."""
        with self.changing() as known:
            known["contexts"].pop(name, None)

    def server(self, environ: Mapping[str, str], *, url: str | None, api_key: str | None) -> Server:
        """Return the server to talk to. A saved secret goes to the address that it was saved for, and no other.

        Raises Failed when no server, or no secret for it, is known.
        """
        url = url or environ.get("HOSTLER_URL") or None
        variables = ((name, environ.get(name)) for name in ("HOSTLER_API_KEY", "HOSTLER_TOKEN"))
        given = next((each for each in (("--api-key", api_key), *variables) if each[1]), None)
        known = self.load()
        name, saved = self._saved(known, url)
        if saved is None and url is None:
            if self.chosen:
                raise Failed(f"No server is saved as {self.chosen!r}.", hint=_login(None, self.chosen))
            raise Failed("It is not known which server to talk to.", hint=_login(None))
        address = clean_url(url or saved["url"])
        if given is not None:
            return Server(url=address, secret=str(given[1]), given_by=given[0])
        if saved is None:
            raise Failed(f"Nothing is known that opens {address}.", hint=_login(address))
        return Server(url=address, secret=saved["secret"], context=name)

    def address(self, environ: Mapping[str, str], *, url: str | None) -> str:
        """Return the address of the server that `server` would return, whether or not anything opens it.

        Raises Failed when none is known.
        """
        if given := url or environ.get("HOSTLER_URL"):
            return clean_url(given)
        saved = self._saved(self.load(), None)[1]
        if saved is None:
            raise Failed("It is not known which server to talk to.", hint=_login(None))
        return clean_url(saved["url"])

    def _saved(self, known: dict[str, Any], url: str | None) -> tuple[str, Any]:
        contexts = known["contexts"]
        name = self.chosen or known.get("current", DEFAULT)
        if url is None or (name in contexts and contexts[name]["url"] == clean_url(url)):
            return name, contexts.get(name)
        for other, saved in contexts.items():
            if saved["url"] == clean_url(url):
                return other, saved
        return name, None


def clean_url(url: str) -> str:
    """Return a server's address without what people append to it. Raises Failed."""
    url = url.strip().rstrip("/").removesuffix("/api")
    if not url.startswith(("http://", "https://")):
        raise Failed(f"The address {url!r} does not start with http:// or https://.")
    return url


def _login(url: str | None, context: str | None = None) -> str:
    name = f" --context {context}" if context else ""
    return f"hostler login --url {url or 'http://127.0.0.1:8080'}{name}"
