"""One pruning run: a network trained, attacked, pruned, fine-tuned and attacked again, into one folder."""

from s2ap_train.commands.prune.pipeline import run_pruning

__all__ = ["run_pruning"]
