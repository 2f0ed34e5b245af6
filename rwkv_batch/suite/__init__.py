"""One suite of tasks for many checkpoints: grading, results and tables."""
