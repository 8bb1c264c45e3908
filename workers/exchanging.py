"""What an agent says and asks in few requests: how attempts ended, which held ones have started, what is next."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from storage.errors import Conflict, HostlerError, Invalid, NotFound, Stale, Unavailable
from workers.control_plane import ControlPlane
from workers.log import log

EXCHANGE = "/api/jobs/exchange"
#: So much goes into one request; the API takes no more.
MOST_AT_ONCE = 100
#: How long a word that could not be said is kept until it is said again.
AGAIN_S = 0.5
#: An API that turned out to know of no exchanges is spoken to in other words for so long.
WITHOUT_S = 60.0

Key = tuple[str, int]

_REFUSALS: dict[str, type[HostlerError]] = {Stale.code: Stale, NotFound.code: NotFound}


class NoExchanges(Unavailable):
    """The API is one of before, or takes it for nonsense: what was said has to be said in other words."""


class _Word:
    """One thing to say, and who waits to hear what became of it."""

    __slots__ = ("answered", "key", "said")

    def __init__(self, key: Key, said: Mapping[str, Any]) -> None:
        self.key, self.said = key, said
        self.answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def answer(self, with_what: Any) -> None:
        if self.answered.done():  # whoever asked has gone
            return
        if isinstance(with_what, BaseException):
            self.answered.set_exception(with_what)
        else:
            self.answered.set_result(with_what)


class Exchanges:
    """One request at a time: what comes up while one is under way leaves with the next."""

    def __init__(self, api: ControlPlane) -> None:
        self._api = api
        self._not_before = 0.0
        self._results: list[_Word] = []
        self._begun: list[_Word] = []
        self._asked: _Word | None = None
        self._under_way: asyncio.Task[None] | None = None
        self._insisting: set[asyncio.Task[None]] = set()

    @property
    def possible(self) -> bool:
        """Whether the API knows of exchanges, as far as is known; during an upgrade one server may, another not."""
        return asyncio.get_running_loop().time() >= self._not_before

    @property
    def speaks(self) -> bool:
        """Whether a request will leave anyway, in this turn of the loop or after the one that is under way."""
        return bool(self._results or self._begun)

    async def end(self, key: Key, result: Mapping[str, Any]) -> str:
        """Say how an attempt ended; answers the job's state after it. Raises HostlerError."""
        if not self.possible:
            raise NoExchanges("The API knows of no exchanges.")
        word = _Word(key, {"jobId": key[0], "attempt": key[1], **result})
        self._results.append(word)
        self._leave_soon()
        return str(await word.answered)

    async def begin(self, key: Key) -> bool:
        """Say that a held attempt starts; answers whether it is still ours. Raises HostlerError."""
        word = _Word(key, {"jobId": key[0], "attempt": key[1]})
        self._begun.append(word)
        self._leave_soon()
        return bool(await word.answered)

    def begin_unheard(self, key: Key, lost: Callable[[], None]) -> None:
        """Say that a held attempt starts, until that is heard; `lost` is called if it is not ours any more.

        An API that cannot be told takes it for one that is yet to start: should this agent be lost, that is no death.
        """
        task = asyncio.create_task(self._insist(key, lost))
        self._insisting.add(task)
        task.add_done_callback(self._insisting.discard)

    async def _insist(self, key: Key, lost: Callable[[], None]) -> None:
        while True:
            try:
                if not await self.begin(key):
                    lost()
                return
            except NoExchanges:
                return
            except HostlerError:
                await asyncio.sleep(AGAIN_S)

    async def ask(self, *, most: int, startable: int) -> list[Mapping[str, Any]]:
        """Ask for up to `most` jobs that are there now; those beyond `startable` are held. Raises HostlerError."""
        self._asked = word = _Word(("", 0), {"most": most, "startable": startable})
        self._leave_soon()
        return list(await word.answered)

    def _leave_soon(self) -> None:
        if self._under_way is None or self._under_way.done():
            self._under_way = asyncio.create_task(self._leave())

    async def _leave(self) -> None:
        while self._results or self._begun or self._asked is not None:
            results, self._results = self._results[:MOST_AT_ONCE], self._results[MOST_AT_ONCE:]
            begun, self._begun = self._begun[:MOST_AT_ONCE], self._begun[MOST_AT_ONCE:]
            asked, self._asked = self._asked, None
            failure: Exception = Unavailable("No answer came, or not a whole one.")
            try:
                await self._exchange(results, begun, asked)
            except Exception as error:
                failure = error
                if not isinstance(error, HostlerError):
                    log.exception("an exchange failed inside the agent")
            finally:  # also where this agent ends
                _answer_all(failure, *results, *begun, asked)

    async def _exchange(self, results: list[_Word], begun: list[_Word], asked: _Word | None) -> None:
        body = {
            "workerId": self._api.name, "results": [word.said for word in results],
            "begun": [word.said for word in begun], **(asked.said if asked is not None else {}),
        }  # fmt: skip
        try:
            answer = await self._api.call("POST", EXCHANGE, body)
            told, lost, jobs = answer["results"], set(answer["lost"]), answer["jobs"]
        except NotFound as error:
            self._not_before = asyncio.get_running_loop().time() + WITHOUT_S
            raise NoExchanges(f"The API knows of no exchanges: {error}") from error
        except Invalid as error:  # one of the results is none: each is said by itself
            _answer_all(NoExchanges(str(error)), *results)
            raise Unavailable(f"The API took nothing of an exchange: {error}") from error
        except (KeyError, TypeError) as error:
            raise Unavailable("The answer to an exchange is none.") from error
        for word, each in zip(results, told, strict=False):
            word.answer(_meaning(each))
        for word in begun:
            word.answer(word.key[0] not in lost)
        _answer_all(jobs, asked)

    async def close(self) -> None:
        """Say nothing more of what is yet unheard. Safe to repeat."""
        ending = [*self._insisting, *([self._under_way] if self._under_way is not None else [])]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)


def _answer_all(with_what: Any, *words: _Word | None) -> None:
    for word in words:
        if word is not None:
            word.answer(with_what)


def _meaning(told: Mapping[str, Any]) -> str | HostlerError:
    """Return the state that a job has after its result, or why the result was refused."""
    if code := told.get("error"):
        return _REFUSALS.get(str(code), Conflict)(str(told.get("message")))
    return str(told.get("status"))
