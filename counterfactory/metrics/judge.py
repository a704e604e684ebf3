"""The criteria by which a vision-language model scores counterfactuals, 1 to 10 each."""

CRITERIA = ("validity", "sparsity", "proximity", "realism")
