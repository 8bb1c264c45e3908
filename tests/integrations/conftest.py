"""Servers on loopback that a test starts, and that end with it."""

import ssl
from collections.abc import Iterator

import pytest
from outside import OK, Serve, Server, Talk


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers = []

    def start(talk: bytes | Talk = OK, tls: ssl.SSLContext | None = None) -> Server:
        server = Server(talk if callable(talk) else lambda connection, _: connection.sendall(talk), tls)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.close()
