"""Lets ``python -m hrbench`` stand for the ``hrbench`` command."""

import sys

from hrbench.cli import main

sys.exit(main())
