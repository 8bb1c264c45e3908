"""`hostler products`: what can be installed; published from a folder, or named from a registry."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cli import rendering, watching
from cli.client import Client, segment
from cli.completing import products
from cli.failures import Failed
from cli.options import ApiKey, Json, Url, Watch, connect
from cli.submitting import upload
from storage.errors import HostlerError

app = typer.Typer(no_args_is_help=True, help="Publish what can be installed; list it, remove it.")
Product = Annotated[
    str, typer.Argument(metavar="PRODUCT", help="Id of the product.", autocompletion=products)
]

_PAGE = 100


@app.command("publish")
def publish(
    directory: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="Folder with a hostler.toml, or a .squareberg/manifest.toml.",
            exists=True,
            file_okay=False,
        ),
    ],
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Publish a folder as a release of the product that its manifest names; prints product and version.

    The manifest is checked before anything is uploaded. Left out is what `hostler submit --file` leaves out.
    """
    from storage import manifests  # noqa: PLC0415  other commands need not wait for what it imports

    try:
        manifests.read_directory(directory)
    except HostlerError as error:
        raise Failed(f"{directory}: {error}") from None
    with connect(url, api_key) as client:
        file = upload(client, directory)
        release = client.call("POST", "/api/releases", body={"fileId": file["fileId"]}, repeatable=True)
    _tell(release, as_json=as_json)


@app.command("add")
def add(
    product: Product,
    *,
    npm: Annotated[str | None, typer.Option("--npm", help="Package of the nodes' npm registry.")] = None,
    pypi: Annotated[str | None, typer.Option("--pypi", help="Package of the nodes' Python registry.")] = None,
    version: Annotated[
        str | None,
        typer.Option("--version", help="Default: the newest when it is installed.", show_default=False),
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option(
            "--manifest", help="A hostler.toml, for a package that brings none.", exists=True, dir_okay=False
        ),
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Name a package of a registry as a product; nodes fetch it from there when they install it."""
    if (npm is None) == (pypi is None):
        raise typer.BadParameter("give one of the two.", param_hint="--npm / --pypi")
    source = {"kind": "npm", "package": npm} if npm is not None else {"kind": "pypi", "package": pypi}
    body: dict[str, Any] = {"product": product, "source": source}
    if version is not None:
        source["version"] = version
    if manifest is not None:
        from storage import manifests  # noqa: PLC0415  as above

        body["manifest"] = manifests.as_json(manifests.read(manifest.read_bytes(), None))
    with connect(url, api_key) as client:
        release = client.call("POST", "/api/releases", body=body, repeatable=True)
    _tell(release, as_json=as_json)


@app.command("list")
def list_products(
    *, watch: Watch = False, url: Url = None, api_key: ApiKey = None, as_json: Json = False
) -> None:
    """List the products that can be installed, each with its versions, newest first."""
    watching.show(url, api_key, _every, _draw, as_json=as_json, watch=watch)


def _every(client: Client) -> dict[str, Any]:
    found: list[dict[str, Any]] = []
    while True:
        answer = client.get("/api/releases", limit=_PAGE, offset=len(found))
        found += answer["products"]
        if len(found) >= answer["total"] or not answer["products"]:
            return {"products": found}


def _draw(answer: dict[str, Any]) -> None:
    rendering.print_table(
        ("PRODUCT", "NAME", "NEWEST", "VERSIONS", "FROM", "PUBLISHED"),
        (
            (
                each["product"],
                each["name"],
                each["newest"],
                ", ".join(release["version"] for release in each["releases"]),
                _origin(each["releases"][0]["source"]),
                rendering.ago(each["releases"][0]["publishedAt"]),
            )
            for each in answer["products"]
        ),
        empty="There are no products. Publish one with: hostler products publish DIR",
    )


@app.command("show")
def show(
    product: Product,
    version: Annotated[
        str | None,
        typer.Argument(
            metavar="[VERSION]", help="Instead: this release, with its manifest.", show_default=False
        ),
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Show a product and its releases, or one release with its manifest."""
    path = f"/api/releases/{segment(product)}" + (f"/{segment(version)}" if version else "")
    with connect(url, api_key) as client:
        found = client.get(path)
    if as_json:
        rendering.write_json(found)
    elif version is not None:
        rendering.print_facts(
            (
                ("product", found["product"]),
                ("version", found["version"]),
                ("name", found["name"]),
                ("from", _origin(found["source"])),
                ("published", rendering.ago(found["publishedAt"])),
                ("by", found["publishedBy"]),
            )
        )
        if found["manifest"] is not None:
            rendering.write_json(found["manifest"])
    else:
        rendering.print_facts(
            (("product", found["product"]), ("name", found["name"]), ("about", found["description"]))
        )
        rendering.print_table(
            ("VERSION", "FROM", "PUBLISHED", "BY"),
            (
                (
                    each["version"],
                    _origin(each["source"]),
                    rendering.ago(each["publishedAt"]),
                    each["publishedBy"],
                )
                for each in found["releases"]
            ),
            empty="It has no releases.",
        )


@app.command("remove")
def remove(
    product: Product,
    version: Annotated[
        str | None,
        typer.Argument(metavar="[VERSION]", help="Default: all its releases.", show_default=False),
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Remove a release, or all releases of a product, unless an app has it."""
    with connect(url, api_key) as client:
        versions = [version]
        if version is None:
            releases = client.get(f"/api/releases/{segment(product)}")["releases"]
            versions = [each["version"] for each in releases]
        removed: list[str] = []
        try:
            for each in versions:
                client.call("DELETE", f"/api/releases/{segment(product)}/{segment(str(each))}")
                removed.append(str(each))
        except Failed:
            if removed:
                rendering.say(f"Removed {product} {', '.join(removed)}.")
            raise
    if as_json:
        rendering.write_json({"product": product, "removed": removed})
    else:
        rendering.stdout().print(f"{product} {', '.join(removed)} is gone.")


def _tell(release: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        rendering.write_json(release)
        return
    rendering.stdout().print(f"{release['product']} {release['version']}")
    rendering.say(f"Install it with: hostler apps install {release['product']}")


def _origin(source: dict[str, Any]) -> str:
    return source["kind"] if source["kind"] == "archive" else f"{source['kind']} {source['package']}"
