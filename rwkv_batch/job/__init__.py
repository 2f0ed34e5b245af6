"""Jobs: from a job file and input files to Parquet files and a report. The library does not import this package."""
