"""How many first tokens a language model under a window needs: SmolLM2 in the shape of StreamingLLM's tables.

    python benchmarks/streaming.py
    python benchmarks/streaming.py --memory pcm   # keys and values in analog rows as well

Published (Xiao et al., ICLR 2024, arXiv 2309.17453, Tables 1 and 2): perplexity with the keys and values of the last
tokens alone, and with those of a few first tokens in the place of as many recent ones. Here a pattern says who attends
whom, `window(w - s) | sinks(s)`, so that every arm has w tokens in view. The last arm keeps the first four places, with
newlines instead of the text's own tokens. Scored are tokens behind the first w, for which the window is too short.

Tokens keep the positions of the text, so a first token is as far away as it stands; StreamingLLM counts positions
within its cache. Texts here are shorter than what the model reads (8,192 tokens), so it knows distances of either kind.
"""

import math

import paired
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from attention import Memory, attach, detach, renew_memory
from calibration import load_model, tasks
from calibration.models.outputs import next_token_scores
from crossbar import presets

NEWLINES = "4 newlines"
ARMS: dict[str, int | None] = {"dense": None, "none": 0, "1": 1, "2": 2, "4": 4, NEWLINES: 4}
"""First tokens in view by the name of an arm; None: all tokens."""
PUBLISHED = {  # perplexity by first tokens in the cache: Table 2, and Table 1 for newlines
    "Llama-2-7B": {"none": 3359.95, "1": 11.88, "2": 10.51, "4": 9.59},
    "MPT-7B": {"none": 460.29, "1": 14.99, "2": 15.00, "4": 14.99},
    "Pythia-12B": {"none": 21.62, "1": 11.95, "2": 12.09, "4": 12.09},
    "Falcon-7B": {"none": 17.90, "1": 12.12, "2": 12.12, "4": 12.12},
    "Llama-2-13B": {"none": 5158.07, "4": 5.40, NEWLINES: 5.60},
}


def main() -> None:
    parser = paired.option_parser(__doc__, rounds=1)
    parser.add_argument("--windows", type=int, default=4, help="texts of the task `perplexity`")
    parser.add_argument("--window-length", type=int, default=1024)
    parser.add_argument("--view", type=int, default=256, help="tokens in view, w")
    parser.add_argument("--memory", help="hardware of keys and values, such as pcm; they are digital unless given")
    options = paired.use(parser)
    paired.print_setting()
    loaded = load_model("smollm2")
    task = tasks.Perplexity(
        loaded.tokenizer, windows=options.windows, window_length=options.window_length, calibration_windows=1
    )
    windows = torch.cat([batch["input_ids"] for batch in task.batches("evaluation")])
    newline = loaded.tokenizer("\n", add_special_tokens=False)["input_ids"][0]
    memory = None
    if options.memory is not None:
        memory = Memory(presets.get(options.memory), capacity=options.window_length)
    found = {}
    for arm in ARMS:
        texts, attended = begun(windows, arm, newline), pattern(arm, options.view)
        found[arm] = losses(loaded.model, texts, attended, options.view, memory)
        print(f"{arm}: {math.exp(float(found[arm].mean())):.2f}", flush=True)
    Console(width=120).print(view(found, options.view))


def pattern(arm: str, tokens: int) -> str:
    """Who attends whom in an arm with so many tokens in view, as text."""
    first = ARMS[arm]
    if first is None:
        return "dense"
    return f"window({tokens - first}) | sinks({first})" if first else f"window({tokens})"


def begun(windows: Tensor, arm: str, newline: int) -> Tensor:
    """The texts ``[windows, N]`` as an arm begins them."""
    if arm != NEWLINES:
        return windows
    windows = windows.clone()
    windows[:, :4] = newline
    return windows


@torch.inference_mode()
def losses(model: nn.Module, windows: Tensor, text: str, behind: int, memory: Memory | None = None) -> Tensor:
    """Mean loss (nats) of the tokens behind the first ``behind`` of texts ``[windows, N]``, ``[windows]`` float64."""
    attach(model, text, memory)
    found = []
    for k, ids in enumerate(windows):
        renew_memory(model, seed=k)  # each text is another draw of cells
        scores = next_token_scores(model, {"input_ids": ids[None]})[0]
        found.append(F.cross_entropy(scores[behind - 1 : -1].float(), ids[behind:]).double())
    detach(model)
    return torch.stack(found)


def view(found: dict[str, Tensor], tokens: int) -> Table:
    """Perplexity of each arm, and its ratio to that with four first tokens, beside the published ratios."""
    table = Table(title=f"{tokens} tokens in view; perplexity of the tokens behind the first {tokens}")
    for name in ("first tokens", "perplexity", "worst text", "× that of 4", *PUBLISHED):
        table.add_column(name, justify="left" if name == "first tokens" else "right")
    for arm, values in found.items():
        ratio = float((values.mean() - found["4"].mean()).exp())
        published = [f"{own[arm] / own['4']:,.2f}" if arm in own else "" for own in PUBLISHED.values()]
        table.add_row(arm, f"{values.mean().exp():.2f}", f"{values.max().exp():.2f}", f"{ratio:.2f}", *published)
    return table


if __name__ == "__main__":
    main()
