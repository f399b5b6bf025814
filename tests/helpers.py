"""Shared by tests: a real, tiny, untrained model folder, made in a second."""

from functools import cache
from pathlib import Path

from moonlet.data import tokenizer as tokenizers
from moonlet.data.tokenizer import Tokenizer


@cache
def tiny_tokenizer() -> Tokenizer:
    return tokenizers.train(["def add(a, b):\n    return a + b\n", "What is 12 + 30? It is 42.\n"] * 20, 290)


def tiny_model_folder(tmp_path: Path) -> Path:
    """A 4-layer K3-shaped model with random weights, its tokenizer, tools.json; MXFP4 experts."""
    from moonlet.chat import chat_template
    from moonlet.engine.load import write
    from moonlet.model.config import for_depth
    from moonlet.model.model import Model
    from moonlet.tasks.base import CALCULATOR

    tokenizer = tiny_tokenizer()
    shape = {"hidden_size": 64, "num_attention_heads": 2, "num_heads": 2, "max_position_embeddings": 512}
    config = for_depth(4, tokenizer.vocab_size, {**shape, "moe_intermediate_size": 32, "routed_expert_hidden_size": 32})
    model = Model(config).init_weights(0)
    folder = Path(tmp_path) / "model"
    tools = {"tools": [CALCULATOR], "table": {"Tarvo": {"mayor": "Belin"}}}
    write(folder, model, tokenizer, "mxfp4", tools, chat_template())
    return folder
