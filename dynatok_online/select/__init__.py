"""Selection before training: which responses, and which of their tokens, are worth a step.

`scoring` runs a model over the data once (or with noise, many times), `tshirt` and `qtuning` say
what to keep. The result is `trajectory.Selected`: the same trajectories with weights of their
tokens. Read `qtuning.py` first.
"""
