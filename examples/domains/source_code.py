"""Code: the function of Python's standard library that does what a line of a docstring says, by MiniLM."""

from domain import options, show

from calibration import load_model, tasks


def main() -> None:
    chosen = options(__doc__, chips=2)
    loaded = load_model("minilm")
    sizes = (
        {"pairs": 8, "calibration_pairs": 4, "max_length": 32}
        if chosen.short
        else {"pairs": 150, "calibration_pairs": 48}
    )
    task = tasks.get("code-search", loaded.tokenizer, **sizes)
    show(loaded.model, task, chosen, pattern="window(64) | sinks(4)", recipe="quick")


if __name__ == "__main__":
    main()
