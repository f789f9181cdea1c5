"""Random texts with everything in them that a checker of IFEval looks for."""

from __future__ import annotations

import random

SENTENCES = {
    "en": (
        "The boats were late because of the storm that came from the north.",
        "We saw a lot of people who had been there for hours, and they were not happy.",
        "She said that her brother would like to go with us to the island.",
        "This is one of the best ideas that I have heard in a long time.",
        "They had to wait for the train, but it was worth it in the end.",
        "All of the lamps in the street were out when we came home.",
    ),
    "de": (
        "Die Boote kamen zu spät, weil der Sturm aus dem Norden nicht nachließ.",
        "Wir haben viele Menschen gesehen, die seit Stunden auf den Zug warteten.",
        "Sie hat gesagt, dass ihr Bruder mit uns auf die Insel fahren möchte.",
        "Das ist eine der besten Ideen, die ich seit langer Zeit gehört habe.",
        "Der Markt ist am Morgen geöffnet und wird gegen Mittag wieder geschlossen.",
    ),
    "fr": (
        "Les bateaux sont arrivés en retard à cause de la tempête qui venait du nord.",
        "Nous avons vu beaucoup de gens qui attendaient le train depuis des heures.",
        "Elle a dit que son frère voudrait aller avec nous sur cette île.",
        "C'est une des meilleures idées que je connaisse, et elle est pour vous.",
        "Le marché est ouvert le matin, mais il ferme toujours avant midi.",
    ),
    "es": (
        "Los barcos llegaron tarde por la tormenta que venía desde el norte.",
        "Vimos a muchas personas que esperaban el tren desde hacía horas.",
        "Ella dijo que su hermano quería ir con nosotros a la isla.",
        "Esta es una de las mejores ideas que he oído en mucho tiempo.",
        "El mercado está abierto por la mañana, pero se cierra antes de comer.",
    ),
    "it": (
        "Le barche sono arrivate in ritardo per la tempesta che veniva da nord.",
        "Abbiamo visto molte persone che aspettavano il treno da alcune ore.",
        "Lei ha detto che suo fratello vorrebbe venire con noi alla spiaggia.",
        "Questa è una delle idee migliori che ho sentito negli ultimi anni.",
        "Il mercato è aperto di mattina, ma non si trova più nulla dopo le dieci.",
    ),
    "pt": (
        "Os barcos chegaram tarde por causa da tempestade que vinha do norte.",
        "Nós vimos muitas pessoas que já estavam à espera do comboio.",
        "Ela disse que o irmão não queria ir com a gente até à ilha.",
        "Esta é uma das melhores ideias que ouvi nos últimos anos, mas também a mais cara.",
        "O mercado está aberto de manhã, mas fecha quando não há mais peixe.",
    ),
    "nl": (
        "De boten waren te laat omdat de storm uit het noorden niet ging liggen.",
        "Wij hebben veel mensen gezien die al uren op de trein stonden te wachten.",
        "Ze zei dat haar broer met ons naar het eiland zou willen gaan.",
        "Dit is een van de beste ideeën die ik in lange tijd heb gehoord.",
        "De markt is in de ochtend open, maar wordt voor de middag weer gesloten.",
    ),
}
WORDS = (
    *("storm", "boats", "island", "lamp", "ZEBRA", "NASA", "river-bank", "don't", "I'M"),
    *("street", "42", "x7", "Well", "BIG", "end"),
)
PIECES = (
    *("* a point", "- another", "*bright*", "**bold**", "[name]", "[the address]", "Section 1"),
    *("Section 2", "<<a title>>", "P.S. one more", "P.P.S and more", "***", "<< >>", "* *", "[]"),
)
WRAPS = ('"{}"', "```json\n{}\n```", "{}", "{}", "{}", "{} Any questions?", "{} any questions?\n")


def prose(rng: random.Random, code: str = "en") -> str:
    """A few sentences in one language; in capitals or in lower case now and then."""
    out = " ".join(rng.choices(SENTENCES[code], k=rng.randint(2, 5)))
    return rng.choice((str, str.upper, str.lower))(out) if code == "en" else out


def text(rng: random.Random) -> str:
    """A text of a few lines: sentences, loose words, marks; now and then JSON, capitals, quotes."""
    if rng.random() < 0.08:
        body = '{"storm": [1, "boats"], "lamp": null' + rng.choice(["}", "}", ""])
        return rng.choice(("{}", "```json\n{}\n```", " {}\n", "```{}```")).format(body)
    lines = []
    for _ in range(rng.randint(1, 6)):
        kind = rng.random()
        if kind < 0.6:
            lines.append(" ".join(rng.choices(SENTENCES["en"], k=rng.randint(1, 2))))
        elif kind < 0.75:
            lines.append(" ".join(rng.choices(WORDS, k=rng.randint(1, 8))) + rng.choice(".!?,  "))
        else:
            lines.append(rng.choice(PIECES))
    out = rng.choice(("\n", " ", "\n\n")).join(lines)
    case = rng.random()
    out = out.upper() if case < 0.15 else out.lower() if case < 0.3 else out
    if rng.random() < 0.3:
        out = out.replace(",", "")
    return rng.choice(WRAPS).format(out)
