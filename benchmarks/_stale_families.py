"""Ten families of slots, from easy to hard: what an edit changes, and what follows from it.

A template is one text: `head`, the slot's value, `tail`, then the text in between, then `cue`, and
what the model has to say next. `recall` begins a sentence that says the slot's value again.

Values and templates that a model is trained on never appear in its evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Template:
    """One wording of a family."""

    entity: str
    """Who or what the text in between is about, as it stands in mid-sentence."""
    head: str
    tail: str
    cue: str
    recall: str
    answers: Mapping[str, str] = field(default_factory=dict)
    """Class of a value -> what to say, where that differs between templates."""
    recall_end: str = "."


@dataclass(frozen=True)
class Family:
    """Slots of one kind."""

    name: str
    label: str
    train: Mapping[str, str]
    """Value -> its class: two values of one class ask for the same answer."""
    heldout: Mapping[str, str]
    train_templates: tuple[Template, ...]
    heldout_templates: tuple[Template, ...]
    carried: bool = False
    """The text in between is written under the slot: each of its lines begins with the value."""

    def values(self, split: str) -> Mapping[str, str]:
        """The values of `train` or `heldout`, each with its class."""
        return self.train if split == "train" else self.heldout

    def templates(self, split: str) -> tuple[Template, ...]:
        """The templates of `train` or `heldout`."""
        return self.train_templates if split == "train" else self.heldout_templates

    def answer(self, template: Template, value: str) -> str:
        """What to say under `value`."""
        meaning = (self.train if value in self.train else self.heldout)[value]
        return template.answers.get(meaning, meaning)


def _same(words: str) -> dict[str, str]:
    return {f" {word}": f" {word}" for word in words.split()}


def _pairs(words: str) -> dict[str, str]:
    """`France:Paris ...` -> {" France": " Paris", ...}"""
    pairs = (word.split(":") for word in words.split())
    return {f" {value}": f" {answer}" for value, answer in pairs}


def _classes(**members: str) -> dict[str, str]:
    return {
        f" {value.strip()}": name for name, text in members.items() for value in text.split(",")
    }


def _cases(words: str) -> dict[str, str]:
    return {"upper": f" {words.upper()}", "lower": f" {words.lower()}"}


_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)


def _next_month(months: str) -> dict[str, str]:
    """Months, each with the one after it."""
    return {f" {one}": f" {_MONTHS[(_MONTHS.index(one) + 1) % 12]}" for one in months.split()}


STYLE = Family(
    "style",
    "style of any word (letter case)",
    train=_classes(
        upper="FREE, NEW, THIS, ONE, THE, AND",
        lower="free, new, this, one, the, and",
    ),
    heldout=_classes(
        upper="GOOD, LIFE, NOW, WAR, NO, ALL",
        lower="good, life, now, war, no, all",
    ),
    train_templates=(
        Template(
            "Nora",
            "Nora writes like this:",
            ".",
            " Nora writes 'green apples' like this:",
            " Nora writes like this:",
            _cases("green apples"),
        ),
        Template(
            "the clerk",
            "The letters on the clerk's labels look like this:",
            ".",
            " In the same letters, the clerk prints 'warm milk':",
            " The letters look like this:",
            _cases("warm milk"),
        ),
        Template(
            "Oscar",
            "An example of the writing on Oscar's board is",
            ".",
            " In the writing of the board, Oscar's 'open door' is",
            " An example of the writing is",
            _cases("open door"),
        ),
    ),
    heldout_templates=(
        Template(
            "Clara",
            "On the wall Clara paints words like",
            ".",
            " Clara paints 'fresh bread' like this:",
            " Clara paints words like",
            _cases("fresh bread"),
        ),
        Template(
            "the printer",
            "The printer sets every card in this way:",
            ".",
            " The printer sets 'long winter' in this way:",
            " The cards are set in this way:",
            _cases("long winter"),
        ),
        Template(
            "Simon",
            "The style of the titles in Simon's notebook is",
            ".",
            " In that style, Simon's title 'summer rain' is written as",
            " The style of the titles is",
            _cases("summer rain"),
        ),
    ),
)

COPY = Family(
    "copy",
    "copy a fact",
    train=_same("tiger river candle silver garden thunder rocket marble pepper forest"),
    heldout=_same("lantern violet copper island winter falcon ocean mirror castle lemon"),
    train_templates=(
        Template(
            "Nora",
            "Nora keeps a secret. The password of the box is",
            ".",
            " The password of Nora's box is",
            " The password of the box is",
        ),
        Template(
            "the captain",
            "The captain has named the new boat after the word",
            ".",
            " The name of the captain's boat is",
            " The boat is named after the word",
        ),
        Template(
            "Oscar",
            "In the game Oscar has drawn the card with the word",
            " on it.",
            " The word on Oscar's card is",
            " Oscar has the card with the word",
        ),
    ),
    heldout_templates=(
        Template(
            "Clara",
            "Clara has chosen a code word for the meeting:",
            ".",
            " Clara's code word for the meeting is",
            " The code word is",
        ),
        Template(
            "the editor",
            "The editor has decided that the magazine will be called",
            ".",
            " The editor's magazine is called",
            " The magazine is called",
        ),
        Template(
            "Simon",
            "The horse that belongs to Simon is called",
            ".",
            " The name of Simon's horse is",
            " The horse is called",
        ),
    ),
)

_COUNTRIES_TRAIN = (
    "France:Paris Spain:Madrid Japan:Tokyo Russia:Moscow Greece:Athens Norway:Oslo "
    "Poland:Warsaw Hungary:Budapest"
)
_COUNTRIES_HELDOUT = (
    "Italy:Rome Germany:Berlin China:Beijing Portugal:Lisbon Sweden:Stockholm Denmark:Copenhagen "
    "Finland:Helsinki Korea:Seoul"
)

KNOWLEDGE = Family(
    "knowledge",
    "knowledge about a fact (capital)",
    train=_pairs(_COUNTRIES_TRAIN),
    heldout=_pairs(_COUNTRIES_HELDOUT),
    train_templates=(
        Template(
            "Nora",
            "Nora has bought a map of",
            ".",
            " The capital of the country on Nora's map is",
            " Nora has a map of",
        ),
        Template(
            "the reporter",
            "The reporter is writing a long article about",
            ".",
            " The capital of the country in the reporter's article is",
            " The article is about",
        ),
        Template(
            "Oscar",
            "The stamp that Oscar likes best comes from",
            ".",
            " The capital of the country on Oscar's stamp is",
            " The stamp comes from",
        ),
    ),
    heldout_templates=(
        Template(
            "Clara",
            "Clara is going to spend the summer in",
            ".",
            " The capital of the country that Clara will visit is",
            " Clara will spend the summer in",
        ),
        Template(
            "the singer",
            "The next concert of the singer will be in",
            ".",
            " The capital of the country where the singer will perform is",
            " The next concert is in",
        ),
        Template(
            "Simon",
            "The book that Simon is reading is a history of",
            ".",
            " The capital of the country in Simon's book is",
            " The book is a history of",
        ),
    ),
)

PRONOUN = Family(
    "pronoun",
    "attribute passed on: he or she",
    train=_classes(
        he="man, father, uncle, son, prince, king, grandfather",
        she="woman, mother, aunt, daughter, princess, queen, grandmother",
    ),
    heldout=_classes(
        he="boy, brother, husband, gentleman, nephew",
        she="girl, sister, wife, lady, girlfriend",
    ),
    train_templates=(
        Template(
            "the driver",
            "The new driver is the",
            " whom we met at the market.",
            " When the driver is tired of driving,",
            " The driver is the",
            {"he": " he", "she": " she"},
        ),
        Template(
            "the painter",
            "The painter in the attic is the",
            " from the house next door.",
            " The painter works all night, because in the daytime",
            " The painter is the",
            {"he": " he", "she": " she"},
        ),
        Template(
            "the guide",
            "Our guide through the caves is the",
            " with the red hat.",
            " The guide has a lamp, and without the lamp",
            " The guide is the",
            {"he": " he", "she": " she"},
        ),
    ),
    heldout_templates=(
        Template(
            "the baker",
            "The new baker is the",
            " who came from the coast.",
            " When the baker closes the shop in the evening,",
            " The baker is the",
            {"he": " he", "she": " she"},
        ),
        Template(
            "the doctor",
            "The doctor in our village is the",
            " in the grey coat.",
            " The doctor is very busy, and on Sundays",
            " The doctor is the",
            {"he": " he", "she": " she"},
        ),
        Template(
            "the winner",
            "The winner of the race is the",
            " at the end of the table.",
            " The winner is happy, because this year",
            " The winner is the",
            {"he": " he", "she": " she"},
        ),
    ),
)

LANGUAGE = Family(
    "language",
    "attribute passed on: language by birth",
    train=_pairs(
        "France:French Spain:Spanish Japan:Japanese Russia:Russian Greece:Greek Norway:Norwegian "
        "Poland:Polish Hungary:Hungarian"
    ),
    heldout=_pairs(
        "Italy:Italian Germany:German China:Chinese Portugal:Portuguese Sweden:Swedish "
        "Denmark:Danish Finland:Finnish Korea:Korean"
    ),
    train_templates=(
        Template(
            "Alex",
            "Alex was born and raised in",
            ". The neighbours, the teachers and the friends of the first years spoke to Alex in "
            "the language of that country.",
            " Alex still dreams in the language of those years, which is",
            " Alex was born in",
        ),
        Template(
            "the cook",
            "The cook of the inn comes from",
            ". All the recipes are in the notebook of the cook's grandmother, just as she used to "
            "say them at the stove.",
            " To read the notebook of the grandmother one has to know",
            " The cook comes from",
        ),
        Template(
            "Robin",
            "Robin grew up on a farm in",
            ". The farm still belongs to the family, and the news from it arrives in long letters.",
            " Every word in the letters from Robin's family is",
            " Robin grew up in",
        ),
    ),
    heldout_templates=(
        Template(
            "Sasha",
            "Sasha spent the whole childhood in",
            ", like the parents and the grandparents. The first words, the songs and the school "
            "books of Sasha were all in the language of that country.",
            " Sasha still counts in the language of the songs, which is",
            " Sasha spent the childhood in",
        ),
        Template(
            "the tailor",
            "The tailor was born in",
            " and went to school there. The tailor's parents have never left, and they write to "
            "the tailor as they speak.",
            " When the tailor answers the parents, the answer is written in",
            " The tailor was born in",
        ),
        Template(
            "Kim",
            "Kim's family comes from",
            ". When the cousins visit, nobody else at the table understands a word of what they "
            "say to Kim.",
            " At the table, Kim and the cousins speak",
            " Kim's family comes from",
        ),
    ),
)

SUM = Family(
    "sum",
    "a sum (one month later)",
    train=_next_month("January March May July September November"),
    heldout=_next_month("February April June August October December"),
    train_templates=(
        Template(
            "Nora",
            "The birthday of Nora is in",
            ".",
            " The month after Nora's birthday is",
            " The birthday is in",
        ),
        Template(
            "the farmer",
            "The farmer will sell the goats in",
            " and the barn one month later.",
            " So the farmer sells the barn in",
            " The goats are sold in",
        ),
        Template(
            "Oscar",
            "Oscar starts to learn the piano in",
            ", and the first concert is one month after that.",
            " Oscar's first concert takes place in",
            " The start is in",
        ),
    ),
    heldout_templates=(
        Template(
            "Clara",
            "Clara will move to the new house in",
            ", and the party is one month later.",
            " So the party of Clara takes place in",
            " Clara will move in",
        ),
        Template(
            "the teacher",
            "The course of the teacher ends in",
            ".",
            " The month after the end of the teacher's course is",
            " The course ends in",
        ),
        Template(
            "Simon",
            "Simon will write the letter in",
            " and wait one month for the reply.",
            " So the reply to Simon's letter comes in",
            " Simon will write in",
        ),
    ),
)

_SIZES = {"big": " bigger", "small": " smaller"}

COMPARE = Family(
    "compare",
    "a comparison (bigger or smaller)",
    train=_classes(
        big="house, ship, horse, train, mountain, tower",
        small="mouse, coin, ant, seed, nail, spoon",
    ),
    heldout=_classes(
        big="elephant, whale, truck, church, bus, castle",
        small="bee, button, egg, bean, pin, fly",
    ),
    train_templates=(
        Template(
            "Nora",
            "The statue that Nora made is the size of a",
            ".",
            " Compared with a chair, Nora's statue is",
            " The statue is the size of a",
            _SIZES,
        ),
        Template(
            "the hunter",
            "The thing that the hunter saw was as large as a",
            ".",
            " Next to a cat, the hunter's thing would look",
            " The thing was as large as a",
            _SIZES,
        ),
        Template(
            "Oscar",
            "Oscar's new balloon has the shape and size of a",
            ".",
            " If we put a bucket beside Oscar's balloon, the balloon is",
            " The balloon has the size of a",
            _SIZES,
        ),
    ),
    heldout_templates=(
        Template(
            "Clara",
            "The toy that Clara found is the size of a",
            ".",
            " Compared with a dog, Clara's toy is",
            " The toy is the size of a",
            _SIZES,
        ),
        Template(
            "the sculptor",
            "The new work of the sculptor is as big as a",
            ".",
            " Next to a bicycle, the sculptor's work looks",
            " The work is as big as a",
            _SIZES,
        ),
        Template(
            "Simon",
            "Simon's cake has the form and size of a",
            ".",
            " In comparison with a football, the cake of Simon is",
            " The cake has the size of a",
            _SIZES,
        ),
    ),
)

PLAN = Family(
    "plan",
    "a plan made under it (work place)",
    train=_pairs(
        "doctor:hospital farmer:farm lawyer:court scientist:laboratory sailor:ship pilot:airport "
        "mechanic:garage monk:monastery"
    ),
    heldout=_pairs(
        "teacher:school chef:restaurant priest:church librarian:library baker:bakery "
        "professor:university gardener:garden pharmacist:pharmacy"
    ),
    train_templates=(
        Template(
            "Alex",
            "Alex wants to earn a living as a",
            " and has made a plan. The first steps of the plan, the training and the tools, have "
            "been chosen with care.",
            " If the plan works, Alex will soon be found every morning at the",
            " Alex wants to be a",
        ),
        Template(
            "the widow",
            "The widow's dream is the work of a",
            ". The clothes are bought, the courses are paid, and the day of the start is set.",
            " When everything goes well, the widow will spend the working day in the",
            " The dream is the work of a",
        ),
        Template(
            "Robin",
            "Robin has signed up for the training of a",
            ". All that is needed for it stands on a list by the door.",
            " As planned, after the training Robin will work in a",
            " It is the training of a",
        ),
    ),
    heldout_templates=(
        Template(
            "Sasha",
            "Sasha has decided to become a",
            " and has written down how to get there, step by step.",
            " When the last step is done, Sasha will be working at the",
            " Sasha will become a",
        ),
        Template(
            "the twins",
            "The older of the twins is going to be a",
            ". Both know what has to be learned, and what the place of work will look like.",
            " If it goes as the twins expect, the place of work will be a",
            " The older one will be a",
        ),
        Template(
            "Kim",
            "The career that Kim prepares for is that of a",
            ". The tools for it are packed, and the first day has been fixed.",
            " On the first day of the new career Kim will go to the",
            " It is the career of a",
        ),
    ),
)

_LINES_TRAIN = "Maybe Sometimes Never Once Again Later Here Suddenly"
_LINES_HELDOUT = "Today Always Perhaps Still Soon Often Now Finally"


def _lines(words: str) -> dict[str, str]:
    return {f" {word}": f"{word}:" for word in words.split()}


CARRIED = Family(
    "carried",
    "state that the response carries on",
    train=_lines(_LINES_TRAIN),
    heldout=_lines(_LINES_HELDOUT),
    carried=True,
    train_templates=(
        Template(
            "Nora",
            "In Nora's poem each line has to begin with the word",
            ".",
            "\n",
            "\n(Each line has to begin with the word",
            recall_end=".)",
        ),
        Template(
            "the prisoner",
            "The prisoner keeps a diary in which every line starts with",
            ".",
            "\n",
            "\n(Every line starts with",
            recall_end=".)",
        ),
        Template(
            "Oscar",
            "Rule for the list that Oscar writes: the first word of a line is",
            ".",
            "\n",
            "\n(The first word of a line is",
            recall_end=".)",
        ),
    ),
    heldout_templates=(
        Template(
            "Clara",
            "Clara's song: all lines start with the same word, which is",
            ".",
            "\n",
            "\n(All lines start with the word",
            recall_end=".)",
        ),
        Template(
            "the poet",
            "The poet was asked to open each line with the word",
            ".",
            "\n",
            "\n(Open each line with the word",
            recall_end=".)",
        ),
        Template(
            "Simon",
            "A report by Simon. Begin every single line with",
            ".",
            "\n",
            "\n(Begin every line with",
            recall_end=".)",
        ),
    ),
)

RETRACTION = Family(
    "retraction",
    "a retraction (it is off)",
    train=_classes(
        yes="confirmed, approved, planned, permitted, granted",
        no="cancelled, rejected, forbidden, banned, abandoned",
    ),
    heldout=_classes(
        yes="scheduled, settled, guaranteed, allowed, authorized",
        no="canceled, postponed, prohibited, refused, dropped",
    ),
    train_templates=(
        Template(
            "Nora",
            "The garden party of Nora has been",
            ".",
            " So on Sunday in Nora's garden there will be",
            " The garden party has been",
            {"yes": " a party", "no": " no party"},
        ),
        Template(
            "the mayor",
            "The speech of the mayor has been",
            ".",
            " The speech of the mayor will",
            " The speech has been",
            {"yes": " be given", "no": " not be given"},
        ),
        Template(
            "Oscar",
            "The journey that Oscar asked for has been",
            ".",
            " Because of this news, Oscar is very",
            " The journey has been",
            {"yes": " happy", "no": " sad"},
        ),
    ),
    heldout_templates=(
        Template(
            "Clara",
            "Clara's wedding in the old chapel has been",
            ".",
            " So on Saturday in the old chapel there will be",
            " The wedding has been",
            {"yes": " a wedding", "no": " no wedding"},
        ),
        Template(
            "Simon",
            "The exhibition of Simon's pictures has been",
            ".",
            " The exhibition of Simon's pictures will",
            " The exhibition has been",
            {"yes": " be held", "no": " not be held"},
        ),
        Template(
            "the widow",
            "The loan that the widow needs has been",
            ".",
            " When the widow heard about it, the widow felt very",
            " The loan has been",
            {"yes": " happy", "no": " sad"},
        ),
    ),
)

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        STYLE,
        COPY,
        KNOWLEDGE,
        PRONOUN,
        LANGUAGE,
        SUM,
        COMPARE,
        PLAN,
        CARRIED,
        RETRACTION,
    )
}

HALVES: dict[str, tuple[str, ...]] = {
    "half-a": ("style", "knowledge", "pronoun", "compare", "carried"),
    "half-b": ("copy", "language", "sum", "plan", "retraction"),
}
"""Two halves of the families, each with easy and hard ones: does repair pass from one to the
other?"""
