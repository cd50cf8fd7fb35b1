"""The paper in miniature, over a fictional medical world."""
