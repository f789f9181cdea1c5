"""The learner of a run: a stream of trajectories in, weights out.

`session` is everything that it is made of; `inbox`, `staleness` and `stream` bring trajectories
to the trainer, `gather`, `canary` and `publisher` take weights to the actors, `gap` compares both
sides, `checkpoint` and `resume` survive. Read `session.py` first.
"""
