"""What every test shares."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is first imported: waiting threads do not spin
os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is first imported: no test may reach a model hub
