#!/usr/bin/env python3
"""patch_megatron.py under the name that it was first published with."""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from patch_megatron import *  # noqa: E402,F401,F403
from patch_megatron import PATCH, main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(PATCH))
