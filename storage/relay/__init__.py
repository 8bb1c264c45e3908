"""Requests to an app on whichever node it runs, carried by the node's own connection to Redis.

A question is sealed for one node, one session of it and one id: who can write to Redis may lose it, but can neither
make one, read one, answer one, nor have one carried out twice. Bodies travel in pieces, a few at a time, and both
sides keep to the same limits. Whoever asks waits on the one subscription of its process.
"""

from storage.relay.answering import serve
from storage.relay.asking import request, stream
from storage.relay.questions import LIMIT_BYTES, TIMEOUT_S, Answer, Ask, Handle, Head, caller
from storage.relay.ways import PIECE_BYTES

__all__ = [
    "LIMIT_BYTES",
    "PIECE_BYTES",
    "TIMEOUT_S",
    "Answer",
    "Ask",
    "Handle",
    "Head",
    "caller",
    "request",
    "serve",
    "stream",
]
