"""Trajectories from actor to learner: nothing lost, nothing twice.

`delivery` and `credits` are the pure rules, `journal` the log on disk, `durable` both together;
`actor_channel` and `learner_channel` are the two ends. Read `delivery.py` first.
"""
