#!/bin/sh
# Diffusion methods on real faces, from Parquet to tables: sh benchmarks/celeba_diffusion.sh DATA [OUT]
# DATA as in celeba_smile.sh, whose models are needed first. What is there already is not made again.
set -eu
data=$1
out=${2:-runs/celeba/diffusion}
here="--set data.path=$data --set models.perceptual=stlpips --out $out --engine local"

. "$(dirname "$0")/celeba_trained.sh"

trained denoiser celeba-denoiser
trained causal celeba-causal
trained attributes celeba-named
# shellcheck disable=SC2086 # the settings are words
{
    for name in ace cecas named; do
        counterfactory run "celeba-smile-$name" $here
    done
    # The control of CECAS: the same two attacks and mask with nothing held still.
    counterfactory run celeba-smile-cecas --set name=celeba-smile-cecas-0 --set method.settings.alpha=0.0 $here
    for name in celeba-smile celeba-smile-pgd; do
        counterfactory run "$name" --set data.rows=5000:5200 $here
    done
}
python -m benchmarks.celeba_diffusion "$out" runs/celeba/models
