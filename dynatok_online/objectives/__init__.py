"""What a loss token counts, and how: one small file a method.

`targets` says what an objective is (`Loss`, `Factor`) and what it is told (`Targets`); `lagged`
holds statistics of earlier steps; `objective` adds losses up; `written` reads what a configuration
says. Read `targets.py` first. To add one: a file beside the others, a line in `written.py`, its
numbers by hand in `tests/objectives`.

What must be there before a row runs (`Loss.needs`) comes as a column of the row (`Row.columns`,
[M] float32, NaN where there is nothing), under the name of the property of `Targets` that reads
it: `context`, `advantage`, `reference`. Columns that a trajectory knows by itself
are planned with its row (`plan_rows(columns=...)`), those that a model computes are added by a
`Provider` of the trainer just before the row runs (`dynatok_online.training.trainer`).
"""
