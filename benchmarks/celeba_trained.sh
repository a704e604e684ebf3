# Read by the benchmarks on CelebA, which set `data`: trains what is not there yet.
trained() { # ROLE NAME
    [ -f "runs/celeba/models/${2#celeba-}.yaml" ] ||
        counterfactory train "$1" "$2" --set data.path="$data" --set holdout.path="$data"
}
