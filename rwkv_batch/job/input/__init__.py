"""The input of a job: from files to rows that can be served. A new format is an entry of `FORMATS` in formats.py."""
