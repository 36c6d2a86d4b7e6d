"""Temporal action segmentation: a label for every frame of a long video, from sets of few feature vectors."""
