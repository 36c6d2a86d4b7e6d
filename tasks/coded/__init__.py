"""Coded sets: real clips kept as compressed video, as many as a budget of bytes has room for."""
