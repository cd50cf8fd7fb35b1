"""Building blocks of the benchmark commands: readers for published exams, item counts, rationale checks."""
