"""Long documents: which second part belongs to which first part of a Wikipedia article, 384 tokens each, by MiniLM."""

from domain import Pairs, options, show

from calibration import load_model
from calibration.tasks.wikipedia import articles, plain

PATTERN = "window(64) | sinks(4)"
LENGTH = 384  # tokens, about 1,700 characters


def main() -> None:
    chosen = options(__doc__, chips=2)
    loaded = load_model("minilm")
    texts = [text for text in map(plain, articles()) if len(text) > 8000]
    length, scored, rest = (32, 6, 2) if chosen.short else (LENGTH, 20, 6)
    pairs = [(text[: 5 * length], text[5 * length : 10 * length]) for text in texts[: scored + rest]]
    task = Pairs("long documents", pairs, scored, loaded.tokenizer, (length, length))
    show(loaded.model, task, chosen, pattern=PATTERN, recipe="quick", times=("1y",))


if __name__ == "__main__":
    main()
