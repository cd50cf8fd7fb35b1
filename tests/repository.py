"""Where the repository is, and the environment of its commands."""
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENV = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
