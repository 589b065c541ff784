"""Retrieval: the news story that goes on from a first sentence, among all stories of the Lee corpus, by MiniLM."""

from domain import Pairs, options, show

from calibration import load_model
from calibration.tasks.gensim_data import data_file

PATTERN = "window(32) | sinks(4)"


def main() -> None:
    chosen = options(__doc__, chips=2)
    loaded = load_model("minilm")
    stories = data_file("lee_background.cor").read_text(encoding="utf-8").splitlines()
    split = (story.partition(". ")[::2] for story in stories)
    pairs = [(first, rest) for first, rest in dict(split).items() if len(first) > 40 and len(rest) > 300]
    scored, rest = (8, 4) if chosen.short else (80, 24)
    task = Pairs("retrieval", pairs[: scored + rest], scored, loaded.tokenizer, (48, 96))
    show(loaded.model, task, chosen, pattern=PATTERN, recipe="quick", times=("1y",))


if __name__ == "__main__":
    main()
