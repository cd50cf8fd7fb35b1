"""Loading and saving of model folders and training state: pretrained weights, adapters, export, merge,
vocabulary extension.
"""
