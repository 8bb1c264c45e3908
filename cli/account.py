"""`hostler login`, `logout`, `whoami` and `setup`: which account the command line acts as."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from cli import rendering, signing_in
from cli.contexts import DEFAULT, Contexts, clean_url
from cli.options import ApiKey, Json, Url, connect
from settings import process_environment

app = typer.Typer()


@app.command()
def login(
    *,
    url: Annotated[str | None, typer.Option("--url", help="Address of the server.")] = None,
    email: Annotated[
        str | None, typer.Option("--email", help="Email or user name, to log in by password.")
    ] = None,
    password: Annotated[bool, typer.Option("--password", help="By password, not in the browser.")] = False,
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the password from stdin.")
    ] = False,
    browser: Annotated[
        bool | None,
        typer.Option("--browser/--no-browser", help="Open a browser here, or show where to go with one."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Instead: take address and key from the folder of `hostler up`."),
    ] = None,
    context: Annotated[str, typer.Option("--context", help="Name to save it under.")] = DEFAULT,
    as_json: Json = False,
) -> None:
    """Log in in the browser, or by password, and let the other commands use that session.

    The session is saved in a file that only you may read, and renewed when it expires. HOSTLER_CONTEXT chooses
    between several.
    """
    environ = process_environment()
    contexts = Contexts(environ)
    if data is not None:
        _tell(signing_in.from_data(contexts, context, data), as_json=as_json)
        return
    address = _address(url, environ)
    by_password = password or password_stdin or email is not None
    if not by_password and (browser is not None or sys.stdin.isatty()):
        from cli import browsing  # noqa: PLC0415  a server and a browser are not always needed

        listen = browsing.has_browser(environ) if browser is None else browser
        who = signing_in.with_session(contexts, context, address, browsing.session(address, listen=listen))
    else:
        account = email or signing_in.ask("email", instead="--email EMAIL --password-stdin")
        secret = signing_in.password(from_stdin=password_stdin)
        who = signing_in.with_password(contexts, context, address, account, secret)
    _tell(who, as_json=as_json)


@app.command()
def logout(
    context: Annotated[str | None, typer.Option("--context", help="Name it was saved under.")] = None,
    as_json: Json = False,
) -> None:
    """End the session that login began, here and on the server."""
    name, told = signing_in.out(Contexts(process_environment()), context)
    if as_json:
        rendering.write_json({"context": name, "serverTold": told})
    else:
        rendering.say("Logged out." if told else "Forgotten here; the server could not be told.")


@app.command()
def whoami(url: Url = None, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Say which server is talked to, as whom, and what that account may do."""
    with connect(url, api_key) as client:
        me = client.get("/api/auth/me")
        server = client.server
    if as_json:
        rendering.write_json({"url": server.url, "context": server.context, **me})
        return
    rendering.print_facts(
        (
            ("server", server.url),
            ("context", server.context),
            ("user", me["username"]),
            ("email", me["email"]),
            ("role", me["roleName"]),
            ("by key", me["keyName"]),
        )
    )


@app.command()
def setup(
    *,
    url: Annotated[str | None, typer.Option("--url", help="Address of the server.")] = None,
    username: Annotated[str, typer.Option("--username", help="Its username.")] = "admin",
    email: Annotated[str | None, typer.Option("--email", help="Its email.")] = None,
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the password from stdin.")
    ] = False,
    context: Annotated[str, typer.Option("--context", help="Name to save it under.")] = DEFAULT,
    as_json: Json = False,
) -> None:
    """Create the first admin of a server that has no user yet, and log in as it. Works once."""
    environ = process_environment()
    address = _address(url, environ)
    signing_in.check_first(address)
    account = {
        "username": username,
        "email": email or signing_in.ask("email", instead="--email EMAIL --password-stdin"),
        "password": signing_in.new_password(from_stdin=password_stdin),
    }
    who = signing_in.first_admin(Contexts(environ), context, address, account)
    _tell(who, as_json=as_json)


def _address(url: str | None, environ: Mapping[str, str]) -> str:
    given = url or environ.get("HOSTLER_URL")
    return clean_url(given or signing_in.ask("address of the server", instead="--url ADDRESS"))


def _tell(who: dict[str, str], *, as_json: bool) -> None:
    if as_json:
        rendering.write_json(who)
    else:
        rendering.say(f"Logged in to {who['url']} as {who['email']}.")
