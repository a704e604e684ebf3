#!/bin/sh
# AIP's setting on real faces, from Parquet to tables: sh benchmarks/celeba_gender.sh DATA [OUT]
# DATA: CelebA as Parquet (id, image, the 40 attributes), at least 6,000 rows. What is there already is not made again.
set -eu
data=$1
out=${2:-runs/celeba}

trained() { # ROLE NAME
    weights=runs/celeba/models/${2#celeba-}.yaml
    [ -f "$weights" ] || counterfactory train "$1" "$2" --set data.path="$data" --set holdout.path="$data"
}

trained classifier celeba-gender
trained classifier celeba-gender-second
trained attributes celeba-attributes
trained autoencoder celeba-autoencoder
trained attgan celeba-attgan
python benchmarks/attgan.py celeba-attgan celeba-attributes celeba 5000:5500 --path "$data/*.parquet"
counterfactory sweep celeba-gender --set data.path="$data" --set engine.kind=local --out "$out"
