"""Genomics: which of two planted motifs comes first, far apart in random DNA; and real splice sites where they are.

The splice sites (3,186 windows of 60 bases, three kinds) are in Debian's package r-cran-mlbench; rdata reads them.
"""

from pathlib import Path

import torch
from domain import Arrays, Encoder, accuracy, options, show, train
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

SPLICE = Path("/usr/lib/R/site-library/mlbench/data/DNA.rda")
WORD, STEP = 6, 2  # a token is a word of 6 bases, every 2 bases
MOTIFS = ("TATAAAAG", "CCAATCGC")


def words(bases: Tensor) -> Tensor:
    """Bases as numbers ``[n, N, 4]`` to overlapping words ``[n, tokens, 24]``."""
    return bases.unfold(1, WORD, STEP).transpose(2, 3).flatten(2)


def parts(inputs: Tensor, labels: Tensor, scored: int) -> dict[str, tuple[Tensor, Tensor]]:
    """The last are scored, 128 before them calibrate, the others train."""
    cut = len(inputs) - scored
    bounds = {"training": (0, cut - 128), "calibration": (cut - 128, cut), "evaluation": (cut, len(inputs))}
    return {name: (inputs[a:b], labels[a:b]) for name, (a, b) in bounds.items()}


def motifs(count: int, length: int = 128) -> tuple[Tensor, Tensor]:
    """Random DNA with both motifs, a tenth of their bases changed, 40 to 110 bases apart; 1 where the second leads."""
    drawn = torch.Generator().manual_seed(1)
    bases = torch.randint(4, (count, length), generator=drawn)
    labels = torch.randint(2, (count,), generator=drawn)
    texts = torch.tensor([["ACGT".index(base) for base in motif] for motif in MOTIFS])
    for row, label in zip(bases, labels.tolist(), strict=True):
        apart = int(torch.randint(40, 111, (), generator=drawn))
        start = int(torch.randint(length - apart - 8 + 1, (), generator=drawn))
        for place, motif in zip((start, start + apart), (label, 1 - label), strict=True):
            kept = torch.rand(8, generator=drawn) < 0.9
            row[place : place + 8] = torch.where(kept, texts[motif], row[place : place + 8])
    return words(one_hot(bases, 4).float()), labels


def splice_sites(path: Path) -> tuple[Tensor, Tensor]:
    """Windows of 60 bases, each as three bits, in an order that is drawn; exon to intron, intron to exon, neither."""
    import rdata

    table = rdata.read_rda(path, default_encoding="ascii")["DNA"]
    kinds = table["Class"].astype("category").cat.codes.to_numpy()
    bits = torch.tensor(table.drop(columns="Class").astype(int).to_numpy(), dtype=torch.float32).unflatten(1, (60, 3))
    bases = torch.cat([bits, 1 - bits.sum(-1, keepdim=True)], -1)  # the fourth base is three zeros
    first = {row: place for place, row in reversed(list(enumerate(map(tuple, bits.flatten(1).int().tolist()))))}
    kept = torch.tensor(sorted(first.values()))  # 3,001 of the 3,186 windows differ
    order = kept[torch.randperm(len(kept), generator=torch.Generator().manual_seed(0))]
    return words(bases)[order], torch.tensor(kinds, dtype=torch.int64)[order]


def main() -> None:
    chosen = options(__doc__)
    found = {"planted motifs": parts(*motifs(400 if chosen.short else 6000), 100 if chosen.short else 1000)}
    if SPLICE.is_file():
        found["splice sites"] = parts(*splice_sites(SPLICE), 800)
    else:
        print(f"splice sites: {SPLICE} is not there, see --help")
    for name, split in found.items():
        torch.manual_seed(0)
        inputs, labels = split["training"]
        classes = int(labels.max()) + 1
        model = Encoder(inputs.shape[1], inputs.shape[2], classes, "window(8) | strided(8)")
        scored = Arrays(name, "accuracy", split, accuracy)
        train(model, scored, cross_entropy, 2 if chosen.short else 300)
        show(model, scored, chosen, times=("1d", "1y"))


if __name__ == "__main__":
    main()
