"""Which language each sentence is in: by its script, or by small words that few others have."""

from __future__ import annotations

from dynatok_online.requirements.folding import fold
from dynatok_online.requirements.pieces import pattern
from dynatok_online.requirements.verdict import SENTENCE, WORD, Requirement, each

_SMALL_WORDS = {
    "en": "the and of to in is that it was for on are with as his they at be this have from or "
    "had by but not what all were we when your can said there use an each which she do "
    "how their if will up other about out many then them these so some her would make "
    "like him into has",
    "de": "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als "
    "auch es an werden aus er hat dass sie nach wird bei einer um am sind noch wie einem "
    "über einen so zum war haben nur oder aber vor zur bis mehr durch man sein wurde wir "
    "ihr ich",
    "fr": "le la les de des du et un une est que qui dans pour pas sur au avec ce il elle sont "
    "plus par je ne se nous vous mais ou où leur son sa ses cette ces aux été être fait "
    "comme tout c qu n j",
    "es": "el la los las de del y en un una que es por con para se no su al lo como más pero "
    "sus le ya o este sí porque esta entre cuando muy sin sobre también me hasta hay "
    "donde quien desde",
    "it": "il lo la gli le di del della e un una che è in per con non si da dei sono come più "
    "ma al alla nel nella questo questa anche se ha hanno era suo sua loro quando dove "
    "perché",
    "pt": "o os as de do da dos das e um uma que é em no na por com para não se seu sua mais "
    "mas ao como foi são ou quando muito nos já está também pelo pela até isso ela ele "
    "entre",
    "tr": "ve bir bu için ile çok daha gibi ama olan olarak var yok kadar sonra değil ben sen biz "
    "siz onlar şey her mı mi mu mü nasıl neden şu ki",
    "nl": "de het een en van in is dat op te zijn met voor niet aan er om ook als dan maar bij "
    "uit nog naar heeft ze hij wordt door over worden deze hun werd wat geen wel kan was",
}
_SMALL = {code: frozenset(fold(words).split()) for code, words in _SMALL_WORDS.items()}
LANGUAGES = (*_SMALL, "ja", "zh")
_EASTERN = pattern(r"[\p{Han}\p{Hiragana}\p{Katakana}]")
_KANA = pattern(r"[\p{Hiragana}\p{Katakana}]")
_LETTER = pattern(r"\p{L}")
_FEW = 4
"""So few Han characters without Kana are Chinese or Japanese."""


def guess(sentence: str) -> str | None:
    """The language that stands out; None where none does."""
    eastern = len(_EASTERN.findall(sentence))
    if eastern and 2 * eastern >= len(_LETTER.findall(sentence)):
        if _KANA.search(sentence):
            return "ja"
        return "zh" if eastern > _FEW else None
    words = [part for word in WORD.findall(sentence) for part in fold(word).split("'")]
    found = {code: sum(word in small for word in words) for code, small in _SMALL.items()}
    best, second = sorted(found.values(), reverse=True)[:2]
    return max(found, key=lambda code: found[code]) if best > second else None


def language(name: str, code: str) -> Requirement:
    """Every sentence is in this language; one that shows none is no evidence."""

    def judge(sentence: str) -> bool | None:
        found = guess(sentence)
        return None if found is None else found == code

    return Requirement(name, "language", f"in language {code}", each(SENTENCE, judge))
