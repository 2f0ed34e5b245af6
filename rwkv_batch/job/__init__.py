"""A job: from input files to output files."""
