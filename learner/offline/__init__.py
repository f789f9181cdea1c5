"""`dynatok train`: the same trainer and loss as online, on data that lies still.

`config` holds its settings, `train` is what each of its processes does. Read `train.py` first.
"""
