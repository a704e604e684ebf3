"""What a vision-language model scores counterfactuals by, 1 to 10 each."""

CRITERIA = ("validity", "sparsity", "proximity", "realism")
