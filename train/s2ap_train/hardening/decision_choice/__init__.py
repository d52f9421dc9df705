"""The choice of the decision: who answers, how classifier and jury are mixed, and what other choices keep and cost."""
