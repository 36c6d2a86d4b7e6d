"""Selection: clips of the generated pool, chosen."""
