"""Searching options and stacks of strategies: proposals, trials, and a holdout that stays fresh."""
