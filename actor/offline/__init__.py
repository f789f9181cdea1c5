"""An actor without a learner: `dynatok collect` and `dynatok eval`.

`alone` starts engine and sessions, `collect` and `eval` are the two verbs, `config` their
settings. Read `alone.py` first.
"""
