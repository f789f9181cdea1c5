"""How well a response follows requirements that changed.

`scoring` gives each pass its scores, `summary` says what counts as adherence after an edit,
`measures` and `judging` add latency, fluency and intervals. Read `summary.py` first.
"""
