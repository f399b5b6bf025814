"""The Kimi text model in small files: config, KDA, MLA, LatentMoE, Attention Residuals, the block that joins them."""
