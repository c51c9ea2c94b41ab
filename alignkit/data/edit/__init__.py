"""Make new files from old ones: repaired, mixed, split, paired, converted."""
