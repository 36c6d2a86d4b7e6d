"""Coresets: real clips, selected."""
