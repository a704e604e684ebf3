#!/bin/sh
# AIP's setting on real faces, from Parquet to tables: sh benchmarks/celeba_gender.sh DATA [OUT]
# DATA: CelebA as Parquet (id, image, the 40 attributes), at least 6,000 rows. What is there already is not made again.
set -eu
data=$1
out=${2:-runs/celeba}

. "$(dirname "$0")/celeba_trained.sh"

trained classifier celeba-gender
trained classifier celeba-gender-second
trained attributes celeba-attributes
trained autoencoder celeba-autoencoder
trained attgan celeba-attgan-first
trained attgan celeba-attgan
python benchmarks/attgan.py celeba-attgan celeba-attributes celeba 5000:5500 --path "$data/*.parquet"
counterfactory sweep celeba-gender --set data.path="$data" --set engine.kind=local --out "$out"
