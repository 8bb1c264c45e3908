"""`hostler keys`: API keys, seen, made and revoked."""

from typing import Annotated

import typer

from cli import rendering, watching
from cli.client import segment
from cli.options import ApiKey, Json, Url, Watch, connect

app = typer.Typer(no_args_is_help=True, help="Look at API keys, make them, revoke them.")


@app.command("list")
def list_keys(
    *,
    everybody: Annotated[bool, typer.Option("--all", "-a", help="Everybody's, as an admin.")] = False,
    watch: Watch = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """List your API keys, the oldest first."""
    query = {"all": "true"} if everybody else {}
    watching.show(
        url, api_key, lambda client: client.get("/api/keys", **query),
        lambda answer: rendering.print_table(
            ("KEY", "NAME", "ROLE", "BEGINS WITH", "ONLY FOR", "OF", "MADE"),
            (
                (
                    each["id"], each["name"], rendering.role(each["role"]), each["prefix"],
                    each.get("scope"), each["userId"], rendering.ago(each["createdAt"]),
                )
                for each in answer["keys"]
            ),
            empty="There are no API keys. Make one with: hostler keys create NAME",
        ),
        as_json=as_json, watch=watch,
    )  # fmt: skip


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is for.")],
    *,
    role: Annotated[
        str, typer.Option("--role", "-r", help="viewer, operator or admin; at most your own.")
    ] = "viewer",
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Make an API key that acts for you, and print its secret, which is shown this once."""
    with connect(url, api_key) as client:
        made = client.call("POST", "/api/keys", body={"name": name, "role": role})
    if as_json:
        rendering.write_json(made)
        return
    rendering.stdout().print(made["key"])
    rendering.say(f"It is shown this once. Revoke it with: hostler keys revoke {made['id']}")


@app.command("revoke")
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="Id of the key, as the list shows it.")],
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Revoke an API key, at once; an admin may revoke anybody's."""
    with connect(url, api_key) as client:
        client.call("DELETE", f"/api/keys/{segment(key_id)}")
    rendering.tell({"keyId": key_id, "revoked": True}, f"Key {key_id} is revoked.", as_json=as_json)
