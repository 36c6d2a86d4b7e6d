"""Which videos there are, what they hold, and their clips."""
