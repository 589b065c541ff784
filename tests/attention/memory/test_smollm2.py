"""SmolLM2, with its own weights, on analog memory."""

import pytest
import torch

from attention import attach, detach
from calibration import load_model
from crossbar import Ledger, presets

NEW = 200


@pytest.mark.slow
def test_generation_on_exact_rows_is_the_models_own_for_200_tokens():
    loaded = load_model("smollm2")
    model = loaded.model
    ids = loaded.tokenizer("Analog memory keeps a token in a row of cells,", return_tensors="pt").input_ids

    def generate():
        return model.generate(ids, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)

    own = generate()
    attach(model, "dense", presets.ideal())
    with Ledger() as ledger:
        found = generate()
    detach(model)
    assert found.shape[1] == ids.shape[1] + NEW
    assert torch.equal(found, own)
    config = model.config
    appended = found.shape[1] - 1  # the last token is not fed back
    writes = 2 * config.num_key_value_heads * config.num_hidden_layers * appended
    assert ledger.totals()["row_writes"] == writes
