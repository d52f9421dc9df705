"""What checks the attacks: curves, sanity checks, the binarisation test."""
