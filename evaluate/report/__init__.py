"""Leaderboards, figures and one self-contained page from a run's results."""
