"""An actor in the loop: collects for a learner and takes its weights.

`actor.Actor` is its life, `collector` keeps sessions running, `weight_updater` puts new weights
into service, `evaluation` measures between. Read `actor.py` first.
"""
