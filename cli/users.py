"""`hostler users`: who may use a server, as its admins see and change it."""

from typing import Annotated, Any

import typer

from cli import rendering, watching
from cli.client import Client, segment
from cli.failures import Failed
from cli.options import ApiKey, Json, Limit, Offset, Url, Watch, Yes, connect
from cli.signing_in import new_password

app = typer.Typer(no_args_is_help=True, help="Look at users, make them, change them, delete them.")
Who = Annotated[str, typer.Argument(metavar="USER", help="Id, username or email.")]
Role = Annotated[
    str | None, typer.Option("--role", "-r", help="viewer, operator or admin.", show_default=False)
]
PasswordStdin = Annotated[bool, typer.Option("--password-stdin", help="Read the password from stdin.")]

_PAGE = 1000


@app.command("list")
def list_users(
    *,
    limit: Limit = 100,
    offset: Offset = 0,
    watch: Watch = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """List users, the oldest first."""

    def draw(answer: dict[str, Any]) -> None:
        rendering.print_table(
            ("USER", "NAME", "EMAIL", "ROLE", "MADE"),
            (
                (
                    each["id"],
                    each["username"],
                    each["email"],
                    rendering.role(each["role"]),
                    rendering.ago(each["createdAt"]),
                )
                for each in answer["users"]
            ),
            empty="There are no users.",
        )
        rendering.tell_more(answer)

    watching.show(
        url, api_key, lambda client: client.get("/api/users", limit=limit, offset=offset), draw,
        as_json=as_json, watch=watch,
    )  # fmt: skip


@app.command("show")
def show(who: Who, url: Url = None, api_key: ApiKey = None, as_json: Json = False) -> None:
    """Show one user."""
    with connect(url, api_key) as client:
        user = client.get(f"/api/users/{segment(_id_of(client, who))}")
    _tell(user, as_json=as_json)


@app.command("create")
def create(
    username: Annotated[str, typer.Argument(metavar="NAME", help="Its username.")],
    email: Annotated[str, typer.Argument(metavar="EMAIL", help="Its email.")],
    *,
    role: Role = None,
    password_stdin: PasswordStdin = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Make a user; without --role it may only look. The password is asked for, or read from stdin."""
    with connect(url, api_key) as client:
        body = {"username": username, "email": email, "password": new_password(from_stdin=password_stdin)}
        user = client.call("POST", "/api/users", body=body | ({"role": role} if role else {}))
    _tell(user, as_json=as_json)


@app.command("update")
def update(
    who: Who,
    *,
    username: Annotated[str | None, typer.Option("--username", help="Its new username.")] = None,
    email: Annotated[str | None, typer.Option("--email", help="Its new email.")] = None,
    role: Role = None,
    password: Annotated[bool, typer.Option("--password", help="Ask for a new password.")] = False,
    password_stdin: PasswordStdin = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Change a user. A new role ends its sessions, a new password its API keys too."""
    changes = {"username": username, "email": email, "role": role}
    body = {name: value for name, value in changes.items() if value is not None}
    if password or password_stdin:
        body["password"] = new_password(from_stdin=password_stdin)
    if not body:
        raise Failed(
            "Nothing to change is named.", hint=f"hostler users update {who} --role operator", exit_code=2
        )
    with connect(url, api_key) as client:
        user = client.call("PUT", f"/api/users/{segment(_id_of(client, who))}", body=body)
    _tell(user, as_json=as_json)


@app.command("delete")
def delete(
    who: Who, yes: Yes = False, url: Url = None, api_key: ApiKey = None, as_json: Json = False
) -> None:
    """Delete a user with its sessions and API keys; the last admin stays."""
    with connect(url, api_key) as client:
        user_id = _id_of(client, who)
        rendering.ask(f"Delete {who}, with all its API keys?", yes=yes)
        client.call("DELETE", f"/api/users/{segment(user_id)}")
    rendering.tell({"userId": user_id, "deleted": True}, f"User {who} is gone.", as_json=as_json)


def _id_of(client: Client, who: str) -> str:
    """Return the id of the user that is called `who`, or `who` itself. Raises Failed."""
    offset, wanted = 0, who.casefold()
    while True:
        answer = client.get("/api/users", limit=_PAGE, offset=offset)
        for each in answer["users"]:
            if who == each["id"] or wanted in {each["username"].casefold(), each["email"].casefold()}:
                return str(each["id"])
        offset += _PAGE
        if not answer["hasMore"]:
            raise Failed(f"There is no user {who!r}.", hint="hostler users list")


def _tell(user: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        rendering.write_json(user)
        return
    rendering.print_facts(
        (
            ("user", user["id"]), ("name", user["username"]), ("email", user["email"]),
            ("role", rendering.role(user["role"])), ("made", user["createdAt"]), ("changed", user["updatedAt"]),
        )
    )  # fmt: skip
