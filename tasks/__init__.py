"""Stages: parameters, the plain function that does the work, and the thin Prefect task around it."""
