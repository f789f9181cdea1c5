"""An actor without a learner: `dynatok collect` and `dynatok eval`.

`alone` starts engine and sessions, `collect` and `eval` are the two verbs (`eval_summary` and
`eval_report` say what eval found), `config` their settings. Read `alone.py` first.
"""
