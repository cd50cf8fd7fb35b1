"""Readers of raw sources: saved web pages, crawled sites, PDF books and the output of OCR engines."""
