"""lm-eval tasks of our own: offline, procedurally generated."""
