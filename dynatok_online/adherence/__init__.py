"""How well a response follows requirements that changed.

`scoring` gives each pass its scores, `stretches` says what counts as adherence after an edit,
`summary` adds it up, `measures` and `outcomes` add latency, fluency and intervals. Read
`stretches.py` first.
"""
