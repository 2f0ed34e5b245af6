"""Commands before and after a job. The library does not import this package."""
