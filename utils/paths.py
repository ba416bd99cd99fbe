"""The folder of this repository, which its scripts, shipped LoRAs and examples are in."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
