"""The learner: trains on trajectories, and publishes weights.

`online` trains on the stream of a run, `offline` is `dynatok train`; what both use stands here.
Read `online/learner.py` first.
"""
