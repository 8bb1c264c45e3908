"""Word counts and a few other figures about a text."""

import re
from collections import Counter
from dataclasses import dataclass

_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")  # noqa: RUF001  both apostrophes hold a word together
_SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)")


def words(text: str) -> list[str]:
    """Return the words of `text` in order, in lower case; "don't" and "well-known" are one word each."""
    return [match.group().lower() for match in _WORD.finditer(text)]


def sentences(text: str) -> list[str]:
    """Return the sentences of `text` without the marks that end them."""
    return [part.strip() for part in _SENTENCE_END.split(text) if words(part)]


def most_common(text: str, count: int) -> list[tuple[str, int]]:
    """Return the `count` most frequent words and how often they occur, ties in alphabetical order."""
    ranked = sorted(Counter(words(text)).items(), key=lambda entry: (-entry[1], entry[0]))
    return ranked[:count]


@dataclass(frozen=True)
class Statistics:
    """What there is to say about a text."""

    words: int
    distinct: int
    sentences: int
    longest: str

    @property
    def variety(self) -> float:
        """Return how many of the words are distinct, from 0 to 1."""
        return self.distinct / self.words if self.words else 0.0


def statistics(text: str) -> Statistics:
    """Return the figures of `text`; of several longest words the first counts."""
    found = words(text)
    return Statistics(len(found), len(set(found)), len(sentences(text)), max(found, key=len, default=""))
