"""Trajectories from actor to learner: nothing lost, nothing twice.

`delivery` is the pure rule, `journal` the log on disk, `durable` both together; `actor_channel`
and `learner_channel` are the two ends. Read `delivery.py` first.
"""
