"""Loading, saving and conversion of model folders, adapters and training state."""
