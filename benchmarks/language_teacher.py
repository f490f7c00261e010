"""What sparse labels add to a language model's forward pass, and what memory they take.

python benchmarks/language_teacher.py                    # time; needs paddle-edl[llm]
python benchmarks/language_teacher.py --memory pieces    # memory of 8 x 2,048 tokens, or: whole

Qwen3 of PaddleFormers with random weights, in the shape of Qwen3-0.6B unless it is said otherwise.
Times are of all CPU threads together, so that others on the machine disturb them little.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time

import numpy as np
import paddle

from edl.serving.model.language import (
    INPUT_IDS,
    LOGITS,
    CausalLM,
    LanguagePredictor,
    Logits,
    halves,
)
from edl.serving.model.sparse import sparse_labels
from edl.serving.wire.labels import LabelForm

FORMS = {
    "top-64": LabelForm(64),
    "8 + 8 samples": LabelForm(8, samples=8),
    "48 + 16 samples": LabelForm(48, samples=16),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--classes", type=int, default=151_936)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", choices=["pieces", "whole"])
    arguments = parser.parse_args()
    if arguments.memory:
        measure_memory(arguments.classes, arguments.memory == "whole")
        return
    teacher = LanguagePredictor(halves(make_model(arguments)))
    shape = (arguments.rows, arguments.tokens)
    feeds = {INPUT_IDS: np.random.default_rng(0).integers(0, arguments.classes, shape)}
    measure(teacher, feeds, arguments.rounds)


def make_model(arguments: argparse.Namespace) -> paddle.nn.Layer:
    from paddleformers.transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=arguments.classes,
        hidden_size=arguments.width,
        intermediate_size=3 * arguments.width,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.width // 64,
        num_key_value_heads=arguments.width // 128,
        head_dim=128,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    model = Qwen3ForCausalLM(config)
    model.config._attn_implementation = "sdpa"
    model.eval()
    return model


def measure(teacher: LanguagePredictor, feeds: dict[str, np.ndarray], rounds: int) -> None:
    tokens = feeds[INPUT_IDS].size
    seeds = np.arange(len(feeds[INPUT_IDS]))
    logits = teacher.run_on_device(feeds, [LOGITS])[LOGITS]  # warms up, too
    took: dict[str, list[float]] = {}
    for _ in range(rounds):
        note(took, "backbone", lambda: teacher.run_on_device(feeds, [LOGITS]))
        note(took, "head", lambda: [None for _ in logits._pieces()])
        for name, form in FORMS.items():
            note(took, name, lambda form=form: logits.labels(form, seeds, None))
    medians = {name: statistics.median(times) / tokens * 1000 for name, times in took.items()}
    forward = medians["backbone"] + medians["head"]
    print(f"{'':18}{'ms/token':>10}{'of the forward pass':>22}")
    for name in ("backbone", "head"):
        print(f"{name:18}{medians[name]:10.2f}{medians[name] / forward:22.1%}")
    for name in FORMS:
        added = medians[name] - medians["head"]
        print(f"{name:18}{added:10.2f}{added / forward:22.1%}  (added)")


def note(took: dict[str, list[float]], name: str, action) -> None:
    started = time.process_time()
    action()
    took.setdefault(name, []).append(time.process_time() - started)


def measure_memory(classes: int, whole: bool) -> None:
    """What labels of 8 x 2,048 tokens take beside hidden states and head, which are narrow here."""
    head = paddle.nn.Linear(64, classes, bias_attr=False)
    hidden = paddle.randn([8, 2048, 64])
    before = memory()
    if whole:
        with paddle.no_grad():
            sparse_labels(head(hidden).numpy(), LabelForm(64))
    else:
        Logits(CausalLM(None, head, classes, 64, None), hidden).labels(LabelForm(64), None, None)
    print(f"{classes} classes: {(memory() - before) / 1e9:.2f} GB")


def memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
