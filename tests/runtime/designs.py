"""Designs of sequential tests, some of them full of ties within rounding."""

from s2ap_defend.sequential.design import Design

DESIGNS = [
    Design(0.05, 0.6),
    Design(0.05, 0.6, boundary="ville", min_accept=4, n_max=12),
    Design(0.05, 0.6, truncation="abstain", n_max=3),
    Design(0.3, 0.5, truncation="clean", n_max=40),
    Design(0.2, 0.3, truncation="adversarial", n_max=15, alpha=0.2, beta=0.1),
    Design(0.4, 0.6, n_max=12),  # u = -v: with six of each, L is zero, but for roundings that differ between orders
    Design(0.25, 0.75, n_max=12, alpha=0.01, beta=0.01),  # the same
    Design(0.1, 0.9, alpha=1 / 82, beta=1 / 82),  # A = 2 u = -B: sums come within a rounding of both boundaries
]
