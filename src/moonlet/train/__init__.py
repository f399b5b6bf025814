"""Training: one step, one loop for pretraining and SFT, checkpoints that resume bit for bit, FLOP counts."""
