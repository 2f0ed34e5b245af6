"""One suite of tasks for many checkpoints, with results in one folder and one table."""
