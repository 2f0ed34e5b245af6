"""Reports of a job: progress and events while it runs, report.json and report.html afterwards."""
