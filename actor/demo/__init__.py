"""The interactive demo: a page on loopback, and the live sessions that it steers.

`main` is `dynatok demo`, `attach` and `door` the way into a running actor; `hub` and `session`
hold what the pages share, `server` serves `page/` and what `dynatok_online.view` draws. Read
`session.py` first.
"""
