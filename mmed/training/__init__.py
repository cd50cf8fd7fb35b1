"""What mmed/train.py builds on: distributed, optimizer, loader, logging, signals, run folder, memory
estimate, validation."""
