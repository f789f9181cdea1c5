"""The contract between actor and learner, and what they leave in a run folder.

`wire`: the messages and how they travel. `delivery`: no trajectory is lost or trained on twice.
`weights`: the transports of new weights. `run`: the files of a run folder. Read
`wire/messages.py` first.
"""
