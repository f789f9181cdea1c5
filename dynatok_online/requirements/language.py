"""Which language each sentence is in, by the small words that only that language has."""

from __future__ import annotations

from dynatok_online.requirements.core import SENTENCE, WORD, Requirement, each

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
    "comme tout",
    "es": "el la los las de del y en un una que es por con para se no su al lo como más pero "
    "sus le ya o este sí porque esta entre cuando muy sin sobre también me hasta hay "
    "donde quien desde",
    "it": "il lo la gli le di del della e un una che è in per con non si da dei sono come più "
    "ma al alla nel nella questo questa anche se ha hanno era suo sua loro quando dove "
    "perché",
    "pt": "o os as de do da dos das e um uma que é em no na por com para não se seu sua mais "
    "mas ao como foi são ou quando muito nos já está também pelo pela até isso ela ele "
    "entre",
    "nl": "de het een en van in is dat op te zijn met voor niet aan er om ook als dan maar bij "
    "uit nog naar heeft ze hij wordt door over worden deze hun werd wat geen wel kan was",
}
LANGUAGES = {code: frozenset(words.split()) for code, words in _SMALL_WORDS.items()}


def guess(sentence: str) -> str | None:
    """The language with the most small words; None where none stands out."""
    words = [word.lower() for word in WORD.findall(sentence)]
    found = {code: sum(word in small for word in words) for code, small in LANGUAGES.items()}
    best, second = sorted(found.values(), reverse=True)[:2]
    return max(found, key=lambda code: found[code]) if best > second else None


def language(name: str, code: str) -> Requirement:
    """Every sentence is in this language; one that shows none is no evidence."""

    def judge(sentence: str) -> bool | None:
        found = guess(sentence)
        return None if found is None else found == code

    return Requirement(name, "language", f"in language {code}", each(SENTENCE, judge))
