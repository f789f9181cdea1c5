"""What a slot can ask for, and the programs that check it.

A requirement judges located pieces of a text (its *units*), one by one. A piece about which it
says nothing is no unit, and a text without units is no evidence: its score is None and must not
enter an average.

A text generated in one pass often begins and ends inside a word. Such a word was written under
two states and belongs to neither: give the neighbouring text and it is left out.

    >>> verdict = requirement("upper").verify("AN and THREE", before="the oce", after=" boats")
    >>> verdict.score, [(u.start, u.stop, u.ok) for u in verdict.units]
    (0.5, [(3, 6, False), (7, 12, True)])

Requirements are named: `upper`; `max_words:20` with a parameter; `upper+no_comma` for both at
once. `my.module:function` is a verifier of your own. `dynatok requirements` and
`docs/requirements.md` list the kinds; one file here per family.
"""

from dynatok_online.requirements.kinds import Kind
from dynatok_online.requirements.own import refuse_code
from dynatok_online.requirements.registry import (
    KINDS,
    REQUIREMENTS,
    contradiction,
    family,
    register,
    requirement,
)
from dynatok_online.requirements.verdict import Requirement, Unit, Verdict

__all__ = [
    "KINDS",
    "REQUIREMENTS",
    "Kind",
    "Requirement",
    "Unit",
    "Verdict",
    "contradiction",
    "family",
    "refuse_code",
    "register",
    "requirement",
]
