"""The laboratory is a program, not an installed package: its tests find it here."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
