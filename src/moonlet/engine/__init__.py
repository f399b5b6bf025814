"""The engine: batched cached decoding used by rl, evals, chat and serve alike."""
