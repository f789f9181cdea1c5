"""The interactive demo: a page on loopback, and the live sessions that it steers.

`main` is `dynatok demo` with an engine of its own (`own_engine`), `attach` the same beside a
running actor, which answers at `run_socket`. `control` does what the pages ask; a `comparison` runs
one prompt in up to four lanes; `server` serves `page/` and what `dynatok_online.view` draws. Read
`comparison.py` first.
"""
