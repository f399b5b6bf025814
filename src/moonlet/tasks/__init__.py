"""Tasks with tools and exact answers: arithmetic, lookup, abstain, receipts; their rewards; training conversations."""
