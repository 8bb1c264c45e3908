"""HTTP to an app of this node: it is on this machine, and speaks without TLS."""

import ssl

import httpx

#: One for each request, with all that the machine trusts read anew, would hold the event loop for 20 ms.
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def transport(uds: str | None = None) -> httpx.AsyncHTTPTransport:
    """Return what carries one request to a port, or to the socket at `uds`."""
    return httpx.AsyncHTTPTransport(verify=_NO_TLS, uds=uds)
