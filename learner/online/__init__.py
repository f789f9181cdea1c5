"""The learner of a run: a stream of trajectories in, weights out.

`learner` is everything that it is made of; `inbox`, `staleness` and `stream` bring trajectories
to the trainer, `gather`, `canary` and `publisher` take weights to the actors, `gap` compares both
sides, `checkpoint` and `resume` survive. Read `learner.py` first.
"""
