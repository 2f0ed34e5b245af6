"""Workers: each runs one engine in a process of its own, `python -m benchmarks.peer_workers.NAME`; see `protocol`.

A worker imports nothing of this project but `protocol`, so it runs in any interpreter that has its engine installed.
"""
