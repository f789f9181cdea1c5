"""Starts, watches and stops a run: command line, configuration, local supervisor, doctor.

`cli` reads the arguments, `config` and `decode` the files, `run` and `supervisor` keep the
processes; `inspect`, `panel` and `picture` show what came of it. Read `run.py` first.
"""
