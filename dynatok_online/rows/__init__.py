"""Spans to rows: what one forward and backward runs.

`row.Row` is the packed layout; `plan` makes rows of trajectories within a token budget, filled by
`bins` and balanced over ranks; `parts` runs a row part by part where memory is short; `ghosts` are
run after a row, forward only. Read `row.py` first.
"""
