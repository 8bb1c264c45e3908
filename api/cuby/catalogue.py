"""What can be installed: our own products beside what the marketplace above offers, if there is one."""

from dataclasses import dataclass

from packaging.version import InvalidVersion, Version

from api.endpoint import Context
from integrations.marketplace import Offer, Upstream
from storage import marketplace, products
from storage.errors import Conflict, HostlerError, NotConfigured, NotFound
from storage.products import LATEST, Release
from storage.store import Store


@dataclass(frozen=True, slots=True)
class Entry:
    """One product: its releases here, newest first, and what the marketplace above offers of it."""

    id: str
    releases: list[Release]
    offer: Offer | None

    @property
    def newest(self) -> str:
        """Return the newest version there is, here or above."""
        ours = self.releases[0].version if self.releases else ""
        above = self.offer.version if self.offer is not None else ""
        return above if is_newer(above, ours) else ours


def is_newer(one: str, other: str) -> bool:
    """Tell whether one version comes after another; what a registry calls latest is as new as any."""
    if not one or LATEST in {one, other}:
        return bool(one) and not other
    if not other:
        return True
    try:
        return Version(one) > Version(other)
    except InvalidVersion:
        return False


def upstream(store: Store) -> Upstream | None:
    """Return the marketplace above, or None where nobody has configured one."""
    settings = store.settings
    if settings.marketplace_url is None:
        return None
    kept = store.cache.get("marketplace")
    if not isinstance(kept, Upstream) or (kept.url, kept.allow) != (
        settings.marketplace_url,
        settings.outbound_allow,
    ):
        kept = store.cache["marketplace"] = Upstream(settings.marketplace_url, settings.outbound_allow)
    return kept


def configured_upstream(store: Store) -> Upstream:
    """Return the marketplace above. Raises NotConfigured."""
    found = upstream(store)
    if found is None:
        raise NotConfigured("No marketplace is configured; HOSTLER_MARKETPLACE_URL names one.")
    return found


async def key_for_upstream(store: Store) -> str:
    """Return the key that the marketplace above is asked with; empty where none is kept."""
    stored = await marketplace.key(store)
    return marketplace.secret_of(store, stored) if stored is not None else ""


async def offers(store: Store) -> tuple[list[Offer], str]:
    """Return what the marketplace above offers, and why that cannot be told, if so."""
    above = upstream(store)
    if above is None:
        return [], ""
    try:
        return await above.products(await key_for_upstream(store)), ""
    except HostlerError as error:
        return [], str(error)


async def entries(store: Store) -> tuple[list[Entry], str]:
    """Return every product in the order of their ids, and why the marketplace above is not among them, if so."""
    (ours, _), (above, problem) = await products.page(store, limit=10_000, offset=0), await offers(store)
    releases = {found[0].product: found for found in ours}
    offered = {offer.id: offer for offer in above}
    return [
        Entry(each, releases.get(each, []), offered.get(each)) for each in sorted({*releases, *offered})
    ], problem


async def take(context: Context, product: str) -> None:
    """See to it that a product has a release here: one that only the marketplace above offers is named here first.

    Raises NotFound.
    """
    store = context.store
    if await products.releases(store, product):
        return
    above, problem = await offers(store)
    for offer in above:
        if offer.id == product:
            await _name(context, offer)
            return
    why = f" The marketplace cannot be asked: {problem}" if problem else ""
    raise NotFound(f"There is no product {product!r}.{why}")


async def take_newest(context: Context, product: str) -> None:
    """Name the release that the marketplace above offers of a product, where it is newer than ours."""
    above, _ = await offers(context.store)
    ours = await products.releases(context.store, product)
    for offer in above:
        if offer.id == product and is_newer(offer.version, ours[0].version if ours else ""):
            await _name(context, offer)


async def _name(context: Context, offer: Offer) -> None:
    source = {"kind": offer.kind, "package": offer.package, "version": offer.version}
    try:
        await products.name(context.store, context.caller.actor, offer.id, source)
    except Conflict:  # this version is published here with another source, and that is the one that counts
        return
