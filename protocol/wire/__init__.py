"""Messages and how they travel: typed msgpack in a checked envelope, over ZeroMQ with CURVE.

`messages` lists them all, `codec` and `envelope` turn them into bytes, `socket` and `keys` are
what both ends share. Read `messages.py` first.
"""
