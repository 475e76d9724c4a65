"""Settings for all tests: no network, few threads, one hypothesis profile."""

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before timm is imported: a test must never wait for a model hub
sys.path.insert(0, str(Path(__file__).parent))  # helpers such as metrics.oracle

from hypothesis import settings

settings.register_profile("hrbench", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("hrbench")
