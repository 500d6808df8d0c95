"""Answers as formulas, numbers, dates and lists: read to their last character, then compared."""
