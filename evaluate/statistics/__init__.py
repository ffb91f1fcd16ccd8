"""What a run tells and how surely: estimates, intervals, comparisons, and the laws that theory has of budgets."""
