"""What wordcount promises, on chosen texts and on many drawn at random from a fixed seed."""

# ruff: noqa: D102, PT009  a test's name is its sentence, and unittest asserts by methods

import random
import unittest
from collections import Counter

from wordcount import most_common, sentences, statistics, words

POEM = "The fog comes on little cat feet. It sits looking over harbor and city, and then moves on."
VOCABULARY = "ash birch cedar elm fir larch maple oak pine rowan willow yew don't well-known naïve".split()  # noqa: SIM905


def random_texts(count: int):
    """Yield `count` pairs of a text and the words it was made of, the same ones each time."""
    source = random.Random(2024)  # noqa: S311  not for secrets
    for _ in range(count):
        chosen = source.choices(VOCABULARY, k=source.randint(0, 60))
        separators = source.choices([" ", ", ", ". ", "\n", " (", ") ", " 42 "], k=len(chosen))
        yield "".join(word + separator for word, separator in zip(chosen, separators, strict=True)), chosen


class Words(unittest.TestCase):
    """Telling words from the rest."""

    def test_punctuation_and_numbers_are_no_words(self):
        self.assertEqual(words("One, 2 (three) -- four!"), ["one", "three", "four"])

    def test_case_does_not_matter(self):
        self.assertEqual(words("Echo ECHO echo"), ["echo"] * 3)

    def test_apostrophes_and_hyphens_hold_a_word_together(self):
        self.assertEqual(
            words("Don't stop a well-known rhythm"), ["don't", "stop", "a", "well-known", "rhythm"]
        )

    def test_letters_of_every_script_count(self):
        self.assertEqual(words("naïve Größe мир"), ["naïve", "größe", "мир"])

    def test_an_empty_text_has_no_words(self):
        self.assertEqual(words(" \n\t"), [])


class Sentences(unittest.TestCase):
    """Telling where a sentence ends."""

    def test_each_mark_ends_a_sentence(self):
        self.assertEqual(sentences("Stop! Who goes there? A friend."), ["Stop", "Who goes there", "A friend"])

    def test_a_point_within_a_number_ends_nothing(self):
        self.assertEqual(len(sentences("Version 3.11 is out. Good.")), 2)

    def test_as_many_sentences_come_out_as_went_in(self):
        for _, chosen in random_texts(9000):
            self.assertEqual(sentences(" ".join(f"{word}." for word in chosen)), chosen)


class Figures(unittest.TestCase):
    """The numbers that come out."""

    def test_a_poem_is_measured(self):
        figures = statistics(POEM)
        self.assertEqual((figures.words, figures.distinct, figures.sentences), (18, 16, 2))
        self.assertEqual(figures.longest, "looking")

    def test_equally_frequent_words_come_in_alphabetical_order(self):
        self.assertEqual(most_common(POEM, 3), [("and", 2), ("on", 2), ("cat", 1)])

    def test_an_empty_text_has_no_variety(self):
        self.assertEqual(statistics("").variety, 0.0)


class ManyTexts(unittest.TestCase):
    """What holds for every text, tried on thousands."""

    def test_every_word_that_went_in_comes_out(self):
        for text, chosen in random_texts(7000):
            self.assertEqual(words(text), chosen)

    def test_counts_agree_with_a_plain_count(self):
        for text, chosen in random_texts(7000):
            self.assertEqual(dict(most_common(text, len(VOCABULARY))), Counter(chosen))

    def test_doubling_a_text_doubles_its_words_and_no_more(self):
        for text, _ in random_texts(4000):
            once, twice = statistics(text), statistics(f"{text} {text}")
            self.assertEqual(twice.words, 2 * once.words)
            self.assertEqual((twice.distinct, twice.longest), (once.distinct, once.longest))
