"""`hostler products`: what can be installed; published from a folder, or named from a registry."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cli import rendering
from cli.client import segment
from cli.failures import Failed
from cli.options import ApiKey, Json, Url, connect
from cli.submitting import upload

app = typer.Typer(no_args_is_help=True, help="Publish what can be installed; list it, remove it.")
Product = Annotated[str, typer.Argument(metavar="PRODUCT", help="Id of the product.")]

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

    manifests.read_directory(directory)
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
def list_products(url: Url = None, api_key: ApiKey = None, as_json: Json = False) -> None:
    """List the products that can be installed, each with its versions, newest first."""
    found: list[dict[str, Any]] = []
    with connect(url, api_key) as client:
        while True:
            answer = client.get("/api/releases", limit=_PAGE, offset=len(found))
            found += answer["products"]
            if len(found) >= answer["total"] or not answer["products"]:
                break
    if as_json:
        rendering.write_json({"products": found})
        return
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
            for each in found
        ),
        empty="There are no products. Publish one with: hostler products publish DIR",
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
