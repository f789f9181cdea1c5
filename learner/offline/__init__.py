"""`dynatok train`: the same trainer and loss as online, on data that lies still.

`train` is one rank, `config` its settings. Read `train.py` first.
"""
