"""Products and their releases: publish an upload or name a registry's package, look, remove."""

from typing import Any

from api.apps import schemas
from api.dialect import CONTEXTBAY
from api.endpoint import Context, Group, HTTPStatus, Role
from api.paging import PageQuery, envelope
from storage import manifests, products
from storage.errors import Conflict, Invalid, NotFound, Unavailable

group = Group("Releases", "/api/releases", CONTEXTBAY)


@group.endpoint("GET", role=Role.VIEWER, query=PageQuery(), returns=schemas.ReleasedProducts())
async def list_products(context: Context, query: dict[str, Any]) -> dict[str, Any]:
    """List the products that can be installed, each with its releases, newest first."""
    found, total = await products.page(context.store, limit=query["limit"], offset=query["offset"])
    return envelope("products", [schemas.product_of(each) for each in found], total, query)


@group.endpoint(
    "POST",
    role=Role.OPERATOR,
    body=schemas.NewRelease(),
    returns=schemas.ReleaseDetail(),
    status=HTTPStatus.CREATED,
    raises=(Invalid, NotFound, Conflict, Unavailable),
)
async def publish(context: Context, body: dict[str, Any]) -> dict[str, Any]:
    """Publish a release: an upload whose archive holds hostler.toml, or a package of npm or PyPI.

    An upload stays for as long as its release does. The same content published again is the same release; other
    content under a version that has been published is 409.
    """
    manifest = manifests.load(body["manifest"]) if "manifest" in body else None
    store, actor = context.store, context.caller.actor
    if "source" in body:
        release = await products.name(store, actor, body["product"], body["source"], manifest=manifest)
        return schemas.release_of(release, secrets=True)
    if manifest is None:
        manifest = await products.packed_manifest(store, body["file_id"])
    if "product" in body and body["product"] != manifest.id:
        message = f"The archive is of {manifest.id!r}."
        raise Invalid(f"product: {message}", details={"product": message})
    published = await products.publish(store, actor, body["file_id"], manifest)
    return schemas.release_of(published, secrets=True)


@group.endpoint("GET /{product}", role=Role.VIEWER, returns=schemas.ReleasedProduct(), raises=(NotFound,))
async def product(context: Context, product: str) -> dict[str, Any]:
    """Show one product with its releases, newest first."""
    found = await products.releases(context.store, product)
    if not found:
        raise NotFound(f"There is no product {product!r}.")
    return schemas.product_of(found)


@group.endpoint(
    "GET /{product}/{version}", role=Role.VIEWER, returns=schemas.ReleaseDetail(), raises=(NotFound,)
)
async def release(context: Context, product: str, version: str) -> dict[str, Any]:
    """Show one release with its manifest.

    The values of its environment are shown to those who may install it.
    """
    found = await products.get(context.store, product, version)
    return schemas.release_of(found, secrets=context.caller.role in {"w", "a"})


@group.endpoint(
    "DELETE /{product}/{version}",
    role=Role.OPERATOR,
    status=HTTPStatus.NO_CONTENT,
    raises=(NotFound, Conflict),
)
async def remove(context: Context, product: str, version: str) -> None:
    """Remove a release that is not installed; its upload then ages like any other."""
    await products.remove(context.store, context.caller.actor, product, version)
