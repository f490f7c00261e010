"""Teacher and student: Qwen3 of PaddleFormers, at sizes for a CPU."""

import json
from pathlib import Path

try:
    from paddleformers.transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        Qwen3Config,
        Qwen3ForCausalLM,
    )
    from paddleformers.utils.log import logger
except ImportError as error:
    raise SystemExit(f"needs PaddleFormers: pip install 'paddle-edl[llm]' ({error})") from error

logger.set_level("ERROR")

TEACHER = {"hidden_size": 128, "num_hidden_layers": 2}  # 0.9 million parameters
STUDENT = {"hidden_size": 64, "num_hidden_layers": 2}  # 0.35 million
ATTENTION = "sdpa"  # PaddleFormers' usual one needs a GPU


def qwen3(classes, hidden_size, num_hidden_layers):
    """A new model with random weights. ``classes``: the size of the vocabulary."""
    heads = hidden_size // 32
    config = Qwen3Config(
        vocab_size=classes,
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        intermediate_size=3 * hidden_size,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=32,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    config._attn_implementation = ATTENTION
    return Qwen3ForCausalLM(config)


def load(checkpoint):
    """The model in a directory that ``save_pretrained`` wrote."""
    if not Path(checkpoint).is_dir():  # it would be looked for in a hub
        raise SystemExit(f"there is no directory {checkpoint} with a model")
    model = AutoModelForCausalLM.from_pretrained(str(checkpoint), dtype="float32")
    model.config._attn_implementation = ATTENTION
    return model


def vocabulary(checkpoint):
    """(tokenizer, number of classes) of the model in a directory; without one, of its tokenizer."""
    if not Path(checkpoint).is_dir():  # it would be looked for in a hub
        raise SystemExit(f"there is no directory {checkpoint} with a teacher")
    tokenizer = AutoTokenizer.from_pretrained(str(checkpoint))
    config = Path(checkpoint) / "config.json"
    if config.is_file():
        return tokenizer, json.loads(config.read_text())["vocab_size"]
    return tokenizer, len(tokenizer)


def logits_of(model, input_ids):
    """(rows, tokens, classes) for int64 (rows, tokens)."""
    outputs = model(input_ids=input_ids)
    return outputs[0] if isinstance(outputs, (tuple, list)) else outputs
