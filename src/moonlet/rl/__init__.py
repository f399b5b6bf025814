"""Reinforcement learning with verifiable rewards: rollouts from our own engine, the token-level objective, the loop."""
