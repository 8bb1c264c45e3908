"""`hostler contexts`: the servers that login has saved, listed, chosen between and renamed."""

from typing import Annotated, Any

import typer

from cli import rendering
from cli.completing import context_names
from cli.contexts import Contexts
from cli.failures import Failed
from cli.options import Json
from settings import process_environment

app = typer.Typer(no_args_is_help=True, help="Choose between the servers that login has saved.")
Name = Annotated[str, typer.Argument(metavar="NAME", help="As login saved it.", autocompletion=context_names)]


@app.command("list")
def list_contexts(as_json: Json = False) -> None:
    """List the saved servers; the one that is used has a mark."""
    contexts = Contexts(process_environment())
    known = contexts.load()
    used = contexts.chosen or known["current"]
    found = [
        {"name": name, "url": each["url"], "email": each.get("email"), "current": name == used}
        for name, each in sorted(known["contexts"].items())
    ]
    if as_json:
        rendering.write_json({"contexts": found})
        return
    rendering.print_table(
        ("", "NAME", "SERVER", "ACCOUNT"),
        (("*" if each["current"] else "", each["name"], each["url"], each["email"]) for each in found),
        empty="No server is saved. Save one with: hostler login --url ADDRESS --context NAME",
    )


@app.command("use")
def use(name: Name, as_json: Json = False) -> None:
    """Use a saved server from now on; HOSTLER_CONTEXT does so for one shell."""
    with Contexts(process_environment()).changing() as known:
        url = _entry(known, name)["url"]
        known["current"] = name
    rendering.tell({"name": name, "url": url}, f"From now on, {url} is talked to.", as_json=as_json)


@app.command("rename")
def rename(
    name: Name,
    new: Annotated[str, typer.Argument(metavar="NEW", help="Its new name.")],
    as_json: Json = False,
) -> None:
    """Give a saved server another name."""
    with Contexts(process_environment()).changing() as known:
        entry = _entry(known, name)
        if new in known["contexts"]:
            raise Failed(f"Another server is saved as {new!r}.", hint="hostler contexts list")
        known["contexts"][new] = entry
        del known["contexts"][name]
        if known["current"] == name:
            known["current"] = new
    rendering.tell(
        {"name": new, "url": entry["url"]}, f"{entry['url']} is now called {new}.", as_json=as_json
    )


def _entry(known: dict[str, Any], name: str) -> dict[str, Any]:
    if name not in known["contexts"]:
        raise Failed(f"No server is saved as {name!r}.", hint="hostler contexts list")
    return dict(known["contexts"][name])
