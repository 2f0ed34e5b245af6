"""The output of a job: from finished rows to segments and parts."""
