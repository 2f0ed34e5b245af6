"""From results to output files."""
