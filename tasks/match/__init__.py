"""Matching: clips that act on a network as the real data set does, by its gradients, features or trajectories."""
