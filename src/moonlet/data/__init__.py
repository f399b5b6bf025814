"""Text in, packed rows out: corpora, the tokenizer, packing, shard files, and the loader whose state is one integer."""
