"""What a job tells while it runs and afterwards."""
