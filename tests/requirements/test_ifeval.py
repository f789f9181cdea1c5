"""Agreement with the original checkers of IFEval, as `lm-eval` ships them.

    pip install "dynatok-online[ifeval]"
    pytest -m slow tests/requirements/test_ifeval.py -s

Two checkers need nltk's trained `punkt` data, which nltk downloads. Where it is absent, nltk's
untrained sentence tokenizer (it knows no abbreviations) and the word tokenizer beneath
`word_tokenize` stand in, and the output says so.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from dynatok_online.requirements import requirement
from dynatok_online.requirements.kinds import GENERAL
from tests.requirements.texts import SENTENCES, prose, text

pytestmark = pytest.mark.slow
instructions = pytest.importorskip(
    "lm_eval.tasks.ifeval.instructions", reason="pip install 'dynatok-online[ifeval]'"
)

# Ours, their checker, its arguments. "less than" is one more than our "at most".
PAIRS: list[tuple[str, str, dict[str, Any]]] = [
    ("upper", "CapitalLettersEnglishChecker", {}),
    ("lower", "LowercaseLettersEnglishChecker", {}),
    (
        "min_capital_words:4",
        "CapitalWordFrequencyChecker",
        {"capital_frequency": 4, "capital_relation": "at least"},
    ),
    (
        "max_capital_words:3",
        "CapitalWordFrequencyChecker",
        {"capital_frequency": 4, "capital_relation": "less than"},
    ),
    ("include:storm,island", "KeywordChecker", {"keywords": ["storm", "island"]}),
    ("forbid:storm,lamps", "ForbiddenWords", {"forbidden_words": ["storm", "lamps"]}),
    (
        "min_keyword:the=4",
        "KeywordFrequencyChecker",
        {"keyword": "the", "frequency": 4, "relation": "at least"},
    ),
    (
        "max_keyword:the=3",
        "KeywordFrequencyChecker",
        {"keyword": "the", "frequency": 4, "relation": "less than"},
    ),
    (
        "min_letter:t=15",
        "LetterFrequencyChecker",
        {"letter": "t", "let_frequency": 15, "let_relation": "at least"},
    ),
    (
        "max_letter:t=14",
        "LetterFrequencyChecker",
        {"letter": "t", "let_frequency": 15, "let_relation": "less than"},
    ),
    ("no_comma", "CommaChecker", {}),
    ("min_placeholders:1", "PlaceholderChecker", {"num_placeholders": 1}),
    ("min_words:40", "NumberOfWords", {"num_words": 40, "relation": "at least"}),
    ("max_words:39", "NumberOfWords", {"num_words": 40, "relation": "less than"}),
    ("min_sentences:4", "NumberOfSentences", {"num_sentences": 4, "relation": "at least"}),
    ("max_sentences:3", "NumberOfSentences", {"num_sentences": 4, "relation": "less than"}),
    ("paragraphs:2", "ParagraphChecker", {"num_paragraphs": 2}),
    ("bullets:1", "BulletListChecker", {"num_bullets": 1}),
    ("json", "JsonFormat", {}),
    ("quoted", "QuotationChecker", {}),
    ("headed", "TitleChecker", {}),
    ("min_highlights:1", "HighlightSectionChecker", {"num_highlights": 1}),
    ("min_sections:1", "SectionChecker", {"section_spliter": "Section", "num_sections": 1}),
    ("postscript:P.S.", "PostscriptChecker", {"postscript_marker": "P.S."}),
    ("postscript:P.P.S", "PostscriptChecker", {"postscript_marker": "P.P.S"}),
    ("ends_with:Any questions?", "EndChecker", {"end_phrase": "Any questions?"}),
    *(
        (f"language:{code}", "ResponseLanguageChecker", {"language": code})
        for code in SENTENCES
        if code != "nl"  # IFEval has no Dutch
    ),
]


def theirs(checker: str, arguments: dict[str, Any]) -> Callable[[str], bool]:
    one = getattr(instructions, checker)(checker)
    one.build_description(**arguments)
    check: Callable[[str], bool] = one.check_following
    return check


@pytest.fixture(autouse=True, scope="module")
def _always_the_same() -> None:
    import langdetect

    langdetect.DetectorFactory.seed = 0
    util = instructions.instructions_util
    try:
        util.count_sentences("A b. C d.")
    except LookupError:
        from nltk.tokenize import NLTKWordTokenizer
        from nltk.tokenize.punkt import PunktSentenceTokenizer

        print("nltk's punkt data is absent: untrained tokenizers stand in")
        util.nltk.word_tokenize = NLTKWordTokenizer().tokenize
        util._get_sentence_tokenizer = PunktSentenceTokenizer


@pytest.mark.parametrize(("name", "checker", "arguments"), PAIRS, ids=[one[0] for one in PAIRS])
def test_agreement(name: str, checker: str, arguments: dict[str, Any]) -> None:
    rng = random.Random(name)
    check, ours = theirs(checker, arguments), requirement(name)
    if name.startswith("language:"):
        texts = [prose(rng, rng.choice([name[-2:], *SENTENCES])) for _ in range(1000)]
    elif name in ("upper", "lower"):  # loose words are no English to langdetect
        texts = [prose(rng) for _ in range(1000)]
    else:
        texts = [text(rng) for _ in range(1000)]
    answers = [(ours.verify(one).holds is not False, bool(check(one)), one) for one in texts]
    held = sum(right for _, right, _ in answers)
    wrong = [one for mine, right, one in answers if mine != right]
    agreement = 1 - len(wrong) / len(answers)
    print(json.dumps({"name": name, "checker": checker, "holds": held, "agreement": agreement}))
    for one in wrong[:3]:
        print("   they say", check(one), repr(one[:160]))
    assert 0 < held < len(answers), "these texts tell nothing"
    assert agreement >= 0.98


def test_every_kind_that_names_a_checker_is_compared() -> None:
    compared = {name.partition(":")[0] for name, _, _ in PAIRS}
    assert compared == {
        kind.name for kind in GENERAL if kind.ifeval and "IFBench" not in kind.ifeval
    }
