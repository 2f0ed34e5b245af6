"""One engine each, in a process of its own: `python -m benchmarks.peer_workers.NAME`, spoken to in lines of JSON.

A worker imports nothing of this project but `protocol`, so it runs in any interpreter that has its engine installed.
"""
