"""Rules that bring one normalization in many spellings to one form."""
