"""Every kind of requirement that there is for any text, family by family."""

from __future__ import annotations

from dataclasses import dataclass

from dynatok_online.requirements import case, layout, length, signs, sound, words
from dynatok_online.requirements.parameters import (
    Make,
    count,
    counted,
    language_code,
    letter,
    phrase,
    plain,
    word_list,
)


@dataclass(frozen=True)
class Kind:
    """A kind of requirement. `example` is a whole name: `upper`, `max_words:20`."""

    example: str
    make: Make
    """Called with the whole name and what stands after its colon; ValueError says what should."""
    unit: str
    """What is judged, one by one."""
    meaning: str
    """What it asks for, in a line."""
    ifeval: str = ""
    """The instruction of IFEval (or IFBench) that asks for the same."""

    @property
    def name(self) -> str:
        """The name without its parameter."""
        return self.example.partition(":")[0]


GENERAL: tuple[Kind, ...] = (
    Kind(
        "upper",
        plain(case.UPPER),
        "word",
        "every word in capitals",
        "change_case:english_capital",
    ),
    Kind(
        "lower",
        plain(case.LOWER),
        "word",
        "every word in small letters",
        "change_case:english_lowercase",
    ),
    Kind(
        "title",
        plain(case.TITLE),
        "word",
        "every word begins with a capital, and goes on in small letters",
        "format:title_case (IFBench)",
    ),
    Kind(
        "min_capital_words:3",
        count(case.min_capital_words),
        "word in capitals, missing one",
        "at least 3 words in capitals",
        "change_case:capital_word_frequency",
    ),
    Kind(
        "max_capital_words:3",
        count(case.max_capital_words),
        "word",
        "at most 3 words in capitals",
        "change_case:capital_word_frequency",
    ),
    Kind(
        "include:boats,gulls",
        word_list(words.include),
        "keyword",
        "each of these words or phrases stands somewhere, as part of a word too",
        "keywords:existence",
    ),
    Kind(
        "forbid:boats,gulls",
        word_list(words.forbid),
        "word",
        "none of these words or phrases stands anywhere",
        "keywords:forbidden_words",
    ),
    Kind(
        "min_keyword:boats=2",
        counted(words.min_keyword),
        "occurrence, missing one",
        "the word at least twice, as part of a word too",
        "keywords:frequency",
    ),
    Kind(
        "max_keyword:boats=2",
        counted(words.max_keyword),
        "word",
        "the word at most twice, as part of a word too",
        "keywords:frequency",
    ),
    Kind(
        "max_repeats:2",
        count(words.max_repeats),
        "word",
        "no word more than twice",
        "words:repeats (IFBench)",
    ),
    Kind(
        "no_repeated_runs:3",
        count(words.no_repeated_runs, least=1),
        "run of words",
        "no three words in a row stand twice",
    ),
    Kind("digits", plain(signs.DIGITS), "number", "every number in digits: 21, 1,000"),
    Kind("spelled", plain(signs.SPELLED), "number", "every number in words: twenty-one"),
    Kind("no_digits", plain(signs.NO_DIGITS), "chunk between blanks", "no digit anywhere"),
    Kind("no_e", lambda name, given: signs.no_letter(name, "e"), "word", "no word with an e"),
    Kind("no_letter:a", letter(signs.no_letter), "word", "no word with an a"),
    Kind(
        "min_letter:a=5",
        counted(signs.min_letter, letter=True),
        "letter, missing one",
        "the letter a at least 5 times",
        "keywords:letter_frequency",
    ),
    Kind(
        "max_letter:a=5",
        counted(signs.max_letter, letter=True),
        "word",
        "the letter a at most 5 times",
        "keywords:letter_frequency",
    ),
    Kind(
        "no_comma",
        plain(signs.NO_COMMA),
        "chunk between blanks",
        "no comma anywhere",
        "punctuation:no_comma",
    ),
    Kind("brackets", plain(signs.BRACKETS), "word", "every [word] [in] [brackets]"),
    Kind(
        "min_placeholders:2",
        count(signs.min_placeholders),
        "placeholder, missing one",
        "at least 2 placeholders such as [address]",
        "detectable_content:number_placeholders",
    ),
    Kind("exclaim", plain(signs.EXCLAIM), "sentence", "every sentence ends with !"),
    Kind("ask", plain(signs.ASK), "sentence", "every sentence is a question"),
    Kind(
        "min_words:20",
        count(length.min_words),
        "word, missing one",
        "at least 20 words",
        "length_constraints:number_words",
    ),
    Kind(
        "max_words:20",
        count(length.max_words),
        "word",
        "at most 20 words",
        "length_constraints:number_words",
    ),
    Kind(
        "min_sentences:3",
        count(length.min_sentences),
        "sentence, missing one",
        "at least 3 sentences",
        "length_constraints:number_sentences",
    ),
    Kind(
        "max_sentences:3",
        count(length.max_sentences),
        "sentence",
        "at most 3 sentences",
        "length_constraints:number_sentences",
    ),
    Kind(
        "short_sentences:12",
        count(length.short_sentences),
        "sentence",
        "no sentence of more than 12 words",
    ),
    Kind(
        "paragraphs:2",
        count(length.paragraphs),
        "paragraph, missing one",
        "2 paragraphs with *** between them",
        "length_constraints:number_paragraphs",
    ),
    Kind(
        "bullets:3",
        count(layout.bullets),
        "bullet point, missing one",
        "exactly 3 bullet points, each on a line of its own",
        "detectable_format:number_bullet_lists",
    ),
    Kind(
        "json",
        plain(layout.JSON),
        "text, from the first error",
        "the text is JSON, in a ``` fence or not",
        "detectable_format:json_format",
    ),
    Kind(
        "quoted",
        plain(layout.QUOTED),
        "first and last character",
        "the text stands in quotation marks",
        "startend:quotation",
    ),
    Kind(
        "headed",
        plain(layout.HEADED),
        "title",
        "there is a <<title>>",
        "detectable_format:title",
    ),
    Kind(
        "min_highlights:2",
        count(layout.min_highlights),
        "highlight, missing one",
        "at least 2 *highlights*",
        "detectable_format:number_highlighted_sections",
    ),
    Kind(
        "min_sections:2",
        count(layout.min_sections),
        "section's beginning, missing one",
        "at least 2 sections: Section 1, Section 2",
        "detectable_format:multiple_sections",
    ),
    Kind(
        "postscript:P.S.",
        phrase(layout.postscript),
        "marker",
        "there is a postscript that begins so",
        "detectable_content:postscript",
    ),
    Kind(
        "starts_with:We saw",
        phrase(layout.starts_with),
        "first characters",
        "the text begins so, quotation marks aside",
    ),
    Kind(
        "ends_with:The end.",
        phrase(layout.ends_with),
        "last characters",
        "the text ends so, quotation marks aside",
        "startend:end_checker",
    ),
    Kind(
        "language:en",
        language_code,
        "sentence",
        "every sentence is in this language: en de fr es it pt tr nl ja zh",
        "language:response_language",
    ),
    Kind(
        "alliteration",
        plain(sound.ALLITERATION),
        "word of a sentence",
        "the longer words of a sentence begin with the same letter",
    ),
    Kind(
        "rhyme",
        plain(sound.RHYME),
        "last word of every second line",
        "every two lines rhyme, as far as spelling shows it",
    ),
)
