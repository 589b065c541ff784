"""How much of a model becomes analog at its published size, counted on the meta device: no weight is read or made.

Default configurations of transformers. Look-ups (embeddings), norms and routers are what stays digital.
`python benchmarks/published_sizes.py mixtral gpt_oss` for some; a minute for a model of 60,000 matrices.
"""

import argparse
import time

import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from crossbar import convert, presets

MODELS = (
    "mixtral",
    "gpt_oss",
    "deepseek_v3",
    "qwen3_moe",
    "qwen2_moe",
    "olmoe",
    "llama4_text",
    "vit",
    "resnet",
    "convnext",
)
BAR = 0.95
HELD = ("mixtral", "gpt_oss", "deepseek_v3")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS, help="model types of transformers")
    view = Table(title=f"analog share at published size, transformers {transformers.__version__}", title_justify="left")
    for column in ("model type", "parameters", "analog", "matrices", "tiles", "seconds"):
        view.add_column(column, justify="left" if column == "model type" else "right")
    lines = []
    for name in parser.parse_args().models:
        config = AutoConfig.for_model(name)
        kind = AutoModelForCausalLM if name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else AutoModel
        with torch.device("meta"):
            model = kind.from_config(config)
        start = time.perf_counter()
        report = convert(model, presets.pcm())
        taken = time.perf_counter() - start
        share = report.analog_parameters / report.parameters
        row = (f"{report.parameters:,}", f"{share:.1%}", f"{len(report.analog):,}", f"{report.tiles:,}", f"{taken:.0f}")
        view.add_row(name, *row)
        if name in HELD:
            lines.append(
                f"{name}: {share:.1%}, {'within' if share >= BAR else 'OUTSIDE'} the bar of at least {BAR:.0%}"
            )
    console = Console()
    console.print(view)
    for line in lines:
        console.print(line)


if __name__ == "__main__":
    main()
