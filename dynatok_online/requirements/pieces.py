"""What a text is made of: words, counted words, chunks, lines and sentences, in any script.

A word is a run of letters, digits and the marks that belong to them, apostrophes inside it too.
Where no blanks stand between words, the word boundaries of Unicode (UAX #29) hold, as they are
without a dictionary: every Han and Hiragana character is a word, a run of Katakana is one.

A sentence ends at . ! ? … before a blank or the end, closing quotes included, and at 。！？
wherever they stand. No sentence ends at the dot of a title, an initial or an abbreviation, or at a
quoted question whose speaker follows. No language needs to be named: the abbreviations are those of
English, German, French, Spanish and Turkish.
"""

from __future__ import annotations

import re
from typing import cast
from unicodedata import normalize

import regex


def pattern(source: str, flags: int = 0) -> re.Pattern[str]:
    """A pattern with Unicode's properties (`\\p{Han}`); it does what one of `re` does."""
    return cast("re.Pattern[str]", regex.compile(source, flags | regex.V1))


_IDEOGRAPH = r"[\p{Han}\p{Hiragana}][\p{M}ー]*+"
_KATAKANA = r"\p{Katakana}[\p{Katakana}\p{M}ーｰﾞﾟ]*+"
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}ーｰ]"
_JOINED = r"\p{M}\u00AD\u200C\u200D\u2060"  # marks, soft hyphens, joiners: of the word around them
_RUN = rf"[[\p{{L}}\p{{N}}]--{_UNSPACED}][[\p{{L}}\p{{N}}{_JOINED}]--{_UNSPACED}]*+"
_LETTERS = rf"[\p{{L}}\p{{N}}][\p{{L}}\p{{N}}{_JOINED}]*+"
_COUNTED_RUN = rf"[[\p{{L}}\p{{N}}_]--{_UNSPACED}][[\p{{L}}\p{{N}}_{_JOINED}]--{_UNSPACED}]*+"

APOSTROPHES = "'’＇"
WORD = pattern(rf"{_IDEOGRAPH}|{_KATAKANA}|{_RUN}(?:[{APOSTROPHES}]{_RUN})*+")
LETTER_RUN = rf"{_LETTERS}(?:[{APOSTROPHES}]{_LETTERS})*+"
"""Source of a pattern: a run of letters in any script, unspaced ones as a whole."""
TOKEN = pattern(rf"{_IDEOGRAPH}|{_KATAKANA}|{_RUN}(?:[-.]{_RUN})*+")
"""As nltk's tokens: I'M is two words, WELL-KNOWN and P.P.S one each."""
COUNTED = pattern(rf"{_IDEOGRAPH}|{_KATAKANA}|{_COUNTED_RUN}")
"""What is counted as a word: as in IFEval, don't is two."""
CHUNK = pattern(r"[^\s，、。！？；：]++[，、。！？；：」』”’）]*+|[，、。！？；：]++")
"""What stands between blanks, or up to a full-width mark."""
LINE = pattern(r"[^\n]*\S[^\n]*")

_TITLES = (
    "mr mrs ms dr st prof mme mlle m sr sra srta dra ud uds hr fr frl herrn av doç sn gen col capt "
    "lt sgt rev hon gov sen rep pres"
)
_NEVER = (
    r"\p{L}(?=\.\s?\p{L}{1,2}\.) ee e\.\s?g i\.\s?e z\.\s?b d\.\s?h u\.\s?a s\.\s?o p\.\s?ex "
    r"c\.-à-d p\.\s?ej vs viz cf ca bzw vgl evtl ggf inkl sog bspw approx env örn bkz yy"
)
_RARELY = r"jr inc ltd co corp bros a\.\s?m p\.\s?m ee\.\s?uu"
_SOMETIMES = r"etc usw u\.s\.w vb vd"
_NUMBERED = (
    r"\p{L}*str no nos nr núm nº fig figs p pp s pág págs art abs bd kap vol ch chap sec eq tab abb"
)
_STARTERS = (
    "the a an he she it they we you i this that these those there then but and in on at when if "
    "what who why how my his her our your not no yes so as for after before "
    "der die das ein eine er sie es wir ich dann aber und dies dort "
    "le la les un une il elle ils elles nous vous je tu puis mais et ce cette "
    "el los las una él ella ellos yo pero y esta este "
    "bu o ben biz siz onlar ama sonra ve"
)
_MONTHS = (
    "januar februar märz april mai juni juli august september oktober november dezember jänner"
)


def _any(words: str) -> str:
    # A word with a blank in it is written `\s?`, so that splitting is safe.
    forms = dict.fromkeys((words + " " + normalize("NFD", words)).split())
    return "(?i:" + "|".join(forms) + ")"


_OPEN = r"[\"'“”„«»‹›‘‚(\[¿¡]*"
_STARTS = rf"\s+{_OPEN}(?=\p{{Lu}}){_any(_STARTERS)}\b(?!\.)"
_CLOSE = r"(?:[\"'”’“‘»«›‹)\]*_]|[ \u00A0\u202F][»›])*+"
_EDGE = r"(?<![\p{L}\p{N}\p{M}'’])"
_WESTERN = rf"""
    [.!?…‽؟]++
    (?<!{_EDGE}(?:{_any(_TITLES)}|{_any(_NEVER)})\.)
    (?!(?<={_EDGE}(?:{_any(_RARELY)}|(?!I)\p{{Lu}}\p{{M}}*|(?:\p{{Lu}}\p{{M}}*\.\s?)+\p{{Lu}}\p{{M}}*)\.)
       (?<!\bP\.(?:\s?P\.)*\s?S\.)(?!{_CLOSE}(?:{_STARTS}|\s*$)))
    (?!(?<={_EDGE}{_any(_SOMETIMES)}\.)\s+[\p{{Ll}}\p{{Nd}}])
    (?!(?<={_EDGE}{_any(_NUMBERED)}\.)\s+\p{{Nd}})
    (?!(?<={_EDGE}(?:\p{{Nd}}{{1,3}}|[IVXLC]{{2,}})\.)[^\S\n]+(?:\p{{Ll}}|{_any(_MONTHS)}\b))
    (?<!\b(?i:de[rnms]|die|das|[aiv][mn]|vom|zum|zur|beim)\s\p{{Nd}}{{1,3}}\.)
    (?!(?<=(?:^|\n)[^\S\n]*\p{{Nd}}{{1,3}}\.)[^\S\n]+\S)
    (?!(?<=\.\.\.|…)\s+\p{{Ll}})
    (?!(?<=[!?…])(?:[\"'”’“‘»«›‹]|[ \u00A0\u202F][»›])++\s+\p{{Ll}})
    (?!(?<=[!?…])\s+[—–]\s?\p{{Ll}})
    {_CLOSE}(?=\s|$)
"""
_EASTERN = r"[。！？｡][。！？｡!?…]*+(?:[」』”’）】》〉\"']++(?!と|って|、|，))?(?![」』”’）】》〉])"
SENTENCE = pattern(rf"\S(?:.*?(?:{_WESTERN}|{_EASTERN})|(?:.*\S)?)", regex.DOTALL | regex.VERBOSE)
