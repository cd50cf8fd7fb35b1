"""What the benchmark commands are made of: readers of published exams, counts, checks of rationales."""
