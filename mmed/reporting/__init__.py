"""Results and logs as one HTML page."""
