"""Workers: processes with an engine each, which serve the units of one job. A coordinator hands units to them."""
