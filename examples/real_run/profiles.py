"""How much of the real run is done, by machine: `--profile hour|night|gpu`."""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Profile:
    """Sizes and learning rates; the rates were chosen on development items (docs/real_run.md)."""

    corpus_steps: int        # of continued pre-training, each `corpus_rows` rows of `sequence_length` tokens
    corpus_rows: int
    sequence_length: int
    corpus_rate: float
    items: int               # exam items of each language that fine-tuning sees; 0: all
    epochs: float
    batch: int               # items per step of fine-tuning
    full_rate: float
    lora_rate: float
    test_items: int          # of each language, in the exam; 0: all
    documents: int           # of each language and kind, for the validation loss
    precision: str
    replay_row: bool         # fine-tune and examine the model of 90 % medical and 10 % general text as well
    minutes: float           # that the slow steps take on the machine the profile is made for


PROFILES = {
    "hour": Profile(
        corpus_steps=40, corpus_rows=1, sequence_length=1024, corpus_rate=1e-5, items=64, epochs=1, batch=8,
        full_rate=2e-5, lora_rate=2e-4, test_items=40, documents=4, precision="bf16", replay_row=False,
        minutes=60),
    "night": Profile(
        corpus_steps=300, corpus_rows=1, sequence_length=1024, corpus_rate=1e-5, items=250, epochs=1,
        batch=16, full_rate=5e-6, lora_rate=2e-4, test_items=0, documents=16, precision="fp32",
        replay_row=True, minutes=480),
    "gpu": Profile(
        corpus_steps=1000, corpus_rows=8, sequence_length=1024, corpus_rate=1e-5, items=0, epochs=3,
        batch=32, full_rate=5e-6, lora_rate=2e-4, test_items=0, documents=32, precision="bf16",
        replay_row=True, minutes=40),
}
