#!/bin/sh
# Smiles on real faces, from Parquet to tables: sh benchmarks/celeba_smile.sh DATA [OUT]
# DATA: CelebA as Parquet (id, image, the 40 attributes), at least 6,000 rows. What is there already is not made again.
set -eu
data=$1
out=${2:-runs/celeba}

. "$(dirname "$0")/celeba_trained.sh"

trained classifier celeba-smile
trained classifier celeba-second
trained attributes celeba-attributes
trained autoencoder celeba-autoencoder
for name in celeba-smile celeba-smile-pgd; do
    counterfactory run "$name" --set data.path="$data" --out "$out" --engine local
done
python benchmarks/celeba_smile.py "$out/celeba-smile" "$out/celeba-smile-pgd" runs/celeba/models
