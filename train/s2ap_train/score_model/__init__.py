"""`s2ap-defend score-model`: the score model of a recipe alone."""
