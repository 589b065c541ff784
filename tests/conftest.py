"""What every test shares."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is first imported: no test may reach a model hub
