"""One pruning run: a network trained, attacked, pruned, fine-tuned and attacked again, into one folder."""
