"""Model folders and training state in and out: pretrained weights, adapters, export, merge, vocabulary
extension.
"""
