"""What a run found: gathered, as tables, as a page, as files."""
