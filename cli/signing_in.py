"""`hostler login` and `hostler logout`: how a session is begun, saved and ended."""

import getpass
import json
import sys
from pathlib import Path

import typer

from cli.client import Client, ask_openly, login, read_json
from cli.contexts import TOKEN, Contexts, Server
from cli.failures import Failed


def ask(what: str, *, instead: str) -> str:
    """Return what somebody types at the terminal. Raises Failed where there is none, naming the options to give."""
    if not sys.stdin.isatty():
        raise Failed(f"There is no terminal to ask for the {what} on.", hint=f"the same with {instead}")
    return str(typer.prompt(what.capitalize(), err=True))


def password(*, from_stdin: bool) -> str:
    """Return the password, asked for without showing it, or the first line of stdin. Raises Failed."""
    if from_stdin:
        secret = sys.stdin.readline().rstrip("\r\n")
    elif sys.stdin.isatty():
        secret = getpass.getpass("Password: ")
    else:
        raise Failed(
            "There is no terminal to ask for the password on.", hint="the same with --password-stdin"
        )
    if not secret:
        raise Failed("The password is empty.")
    return secret


def new_password(*, from_stdin: bool) -> str:
    """Return a password to set, asked for twice at a terminal. Raises Failed."""
    secret = password(from_stdin=from_stdin)
    if not from_stdin and getpass.getpass("Once more: ") != secret:
        raise Failed("The two are not the same.")
    return secret


def with_password(contexts: Contexts, name: str, url: str, account: str, secret: str) -> dict[str, str]:
    """Log in and save the session under `name`; return where and as whom. Raises Failed."""
    session = login(url, account, secret)
    contexts.save(name, url=url, secret=session["token"], email=session["user"]["email"])
    return {"context": name, "url": url, "email": session["user"]["email"], "role": session["user"]["role"]}


def first_admin(contexts: Contexts, name: str, url: str, account: dict[str, str]) -> dict[str, str]:
    """Create the first admin of a server, `username`, `email` and `password`, and save its session. Raises Failed."""
    session = read_json(ask_openly(url, "POST", "/api/auth/setup", account))
    contexts.save(name, url=url, secret=session["token"], email=session["user"]["email"])
    return {"context": name, "url": url, "email": session["user"]["email"], "role": session["user"]["role"]}


def check_first(url: str) -> None:
    """Check that a server waits for its first admin. Raises Failed."""
    if not read_json(ask_openly(url, "GET", "/api/auth/setup"))["needed"]:
        raise Failed(f"{url} has an admin already.", hint=f"hostler login --url {url}")


def from_data(contexts: Contexts, name: str, data: Path) -> dict[str, str]:
    """Save what the `hostler up` of the folder `data` keeps for its admin. Raises Failed."""
    path = data / "admin.json"
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        url, email, key = known["url"], known["email"], known["apiKey"]
    except FileNotFoundError:
        raise Failed(f"There is no {path}.", hint=f"hostler up --data {data}") from None
    except (ValueError, KeyError, TypeError):
        raise Failed(f"{path} cannot be understood.") from None
    if key is None:
        return with_password(contexts, name, url, email, known["password"])
    return with_session(contexts, name, url, key)


def with_session(contexts: Contexts, name: str, url: str, secret: str) -> dict[str, str]:
    """Save a session's token, or an API key, under `name`; return where and as whom. Raises Failed."""
    with Client(Server(url=url, secret=secret)) as client:
        me = client.get("/api/auth/me")
    contexts.save(name, url=url, secret=secret, email=me["email"])
    return {"context": name, "url": url, "email": str(me["email"]), "role": str(me["roleName"])}


def out(contexts: Contexts, name: str | None) -> tuple[str, bool]:
    """End the session saved under `name` (default: the current one); return its name and if the server knows.

    Raises Failed when there is none.
    """
    known = contexts.load()
    name = name or contexts.chosen or known["current"]
    saved = known["contexts"].get(name)
    if saved is None:
        raise Failed(f"No server is saved as {name!r}.")
    server = Server(url=saved["url"], secret=saved["secret"], context=name)
    told = True
    if server.kind == TOKEN:
        with Client(server, contexts) as client:
            try:
                client.call("POST", "/api/auth/logout", repeatable=True)
            except Failed:
                told = False
    contexts.forget(name)
    return name, told
