"""`dynatok train`: the same trainer and loss as online, on data that lies still.

`config` holds its settings, `ranks` starts its processes, `train` is what each of them does. Read
`train.py` first.
"""
