"""Twenty architectures of transformers in the ordinary suite, every one that can be built small in the slow one."""

import pytest

from tests.architectures import tiny
from tests.architectures.walk import row_of

ORDINARY = (
    "bert", "deberta-v2", "deepseek_v3", "falcon", "gemma3_text", "gpt2", "gpt_oss", "hubert", "llama", "longt5",
    "mamba", "mixtral", "mamba2", "modernbert", "olmoe", "opt", "segformer", "phimoe", "t5", "vit",
)  # fmt: skip


def require_right(row):
    """Equal or refused by a sentence of this project, and trained with finite gradients where it is equal."""
    assert row.verdict in ("equal", "refused"), row
    if row.verdict == "equal":
        assert row.trains is not False, row


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ORDINARY)
def test_an_architecture_converts_and_equals_the_digital_model(name):
    row = row_of(name)
    assert not row.built, row
    require_right(row)
    assert row.verdict == "equal"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_no_architecture_is_wrong():
    rows = [row for row in map(row_of, tiny.architectures()) if not row.built]
    for row in rows:
        require_right(row)
    equal = [row for row in rows if row.verdict == "equal"]
    assert len(equal) >= 330
    assert sum(row.analog >= 0.95 for row in equal) >= 315
    assert sum(row.trains is True for row in equal) >= 325
