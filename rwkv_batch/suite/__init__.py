"""A suite: several tasks that are evaluated with several checkpoints, into one folder and one table."""
