"""What one runs: flows and the `vidistill` command line."""
