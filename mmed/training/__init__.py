"""What mmed/train.py builds on."""
