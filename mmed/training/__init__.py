"""Around the loop of mmed/train.py: distributed, optimizer, loader, logging, signals, run folder, memory
estimate, validation."""
