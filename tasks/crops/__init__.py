"""OptDistill (paper S2): detect, track, crop, score, tile."""
