"""The contract between actor and learner, and what they leave in a run folder.

`wire` holds the messages and how they travel, `delivery` that none is lost or doubled, `weights`
the ways of new weights, `run` the files of a run. Read `wire/messages.py` first.
"""
