"""Jobs, and the runs that they leave behind."""
