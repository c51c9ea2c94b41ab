"""Reports on judgements, votes, completions and reward models, with honest intervals."""
