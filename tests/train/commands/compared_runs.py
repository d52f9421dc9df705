"""Runs that are compared, and what is printed of them."""

import io

import numpy as np
from rich.console import Console

from s2ap_train.commands.compare.report import print_comparison
from s2ap_train.measures.benchmark import Benchmark, BenchmarkAttack


def text_of(comparison, **console):
    stream = io.StringIO()
    print_comparison(comparison, Console(file=stream, **console))
    return stream.getvalue()


def said(comparison):
    """The same without line breaks."""
    return " ".join(text_of(comparison).split())


def benchmark_json(images, right, predicted, *, seed=0):
    """The benchmark of a network on one-pixel images, whose bits are these."""
    bits = np.array(right, dtype=bool)
    attack = BenchmarkAttack(eps=0.1, seed=seed)
    found = Benchmark("pruned", attack, f"{images:064d}", np.array(predicted), bits, bits, bits, bits)
    return found.to_json()
