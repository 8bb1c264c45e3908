"""Ports that speak one dialect alone, and let in whoever is on this machine, but no web page of somebody else."""

from collections.abc import Iterable

from falcon.asgi import Request

from api.auth import Gate, credential
from api.dialect import CBOX, CUBY, SQUAREBERG, Dialect
from api.endpoint import Group
from settings import Listener, Settings, is_loopback
from storage.admission import Presented
from storage.errors import Denied
from storage.identity import ROLE_WORDS, Identity
from storage.store import Store

DIALECTS: dict[str, Dialect] = {dialect.name: dialect for dialect in (CBOX, CUBY, SQUAREBERG)}

#: The modules whose endpoints a port serves beside its own dialect's: what clients of that system also ask for.
_SHARED: dict[str, tuple[str, ...]] = {"cuby": ("api.shared.health",)}


def groups_of(dialect: Dialect, groups: Iterable[Group]) -> list[Group]:
    """Return what a port of `dialect` serves of `groups`."""
    shared = _SHARED.get(dialect.name, ())
    return [
        group
        for group in groups
        if group.dialect is dialect or any(each.handler.__module__ in shared for each in group.endpoints)
    ]


def identity(settings: Settings, listener: Listener) -> Identity:
    """Return as whom a port that asks for no credentials lets everybody act."""
    role = next(letter for letter, word in ROLE_WORDS.items() if word == settings.listen_role)
    actor = settings.listen_actor
    return Identity("listener", actor, role, actor, actor)  # type: ignore[arg-type]  # a letter of the ladder


class OpenGate(Gate):
    """Admits everybody on this machine as one actor; who presents credentials is still held to them."""

    def __init__(self, store: Store, listener: Listener) -> None:
        super().__init__(store)
        self._anybody = identity(store.settings, listener)

    def presented(self, req: Request) -> Presented | None:
        """Return a header's credential; cookies know no ports, so they are those of any server on this machine."""
        presented = credential(req)
        return None if presented is None or presented.by == "cookie" else presented

    def unnamed(self, req: Request) -> Identity:
        """Return the actor of this port. Raises Denied for what a page of another site made a browser send."""
        refuse_pages(
            host=req.get_header("Host") or "",
            origin=req.get_header("Origin"),
            fetch_site=req.get_header("Sec-Fetch-Site"),
        )
        return self._anybody


def gate(store: Store, listener: Listener) -> Gate:
    """Return who is let in through a port."""
    return Gate(store) if listener.asks else OpenGate(store, listener)


def refuse_pages(*, host: str, origin: str | None, fetch_site: str | None) -> None:
    """Raise Denied unless a request to an open port comes from a program, or from a page of that very port.

    A name that was rebound to this machine is not one of loopback; a foreign page sends its own Origin with whatever
    it may change, and browsers say Sec-Fetch-Site with all that it may not (https://www.w3.org/TR/fetch-metadata/).
    """
    if not is_loopback(_host(host)):
        raise Denied("This port without credentials is reached as 127.0.0.1 or localhost only.")
    foreign_origin = origin is not None and origin.lower() != f"http://{host.lower()}"
    if foreign_origin or fetch_site not in {None, "same-origin", "none"}:
        raise Denied("This port without credentials does not serve pages of other sites.")


def _host(netloc: str) -> str:
    name, _, port = netloc.rpartition(":")
    host = name if name and port.isdecimal() else netloc
    return host.removeprefix("[").removesuffix("]")
