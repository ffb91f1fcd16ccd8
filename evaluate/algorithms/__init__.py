"""What several strategies share: votes, sampling, search, stages; a strategy is a short program over these."""
