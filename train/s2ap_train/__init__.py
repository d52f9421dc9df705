"""Train robust pruned classifiers, ensemble members and score models, calibrate and evaluate the defence."""
