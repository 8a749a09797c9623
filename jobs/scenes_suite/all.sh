#!/usr/bin/env bash
# Trains every model of the small suite that begins with `scenes`, on two cores, two trainings at a time. Killed at any
# moment, the same command goes on. The weights lie in out/train/scenes-*/weights; README.md says how they are judged.
#
#   jobs/scenes_suite/all.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
jobs=jobs/scenes_suite

segdatagen ingest scenes 20000@64x64 --split pretrain --out out/scenes-pretrain
segdatagen ingest scenes 500@64x64 --split val --out out/scenes-val

train() { segdatagen train "$1" "$jobs/$1.yaml" --local; }

{ train vae && train base; } &
latent=$!
{ train captioner && train clip; } &
texts=$!
wait "$latent"
wait "$texts"
train text2mask &
masks=$!
{ train controlnet && train t2i_adapter; } &
controls=$!
wait "$masks"
wait "$controls"
