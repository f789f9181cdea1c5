"""Trajectories on disk.

`storage` reads and writes JSON Lines and Parquet; `shards` is a folder that survives being killed
while it is written. Read `storage.py` first.
"""
