#!/usr/bin/env bash
# Trains every model of the small suite on two cores, two trainings at a time. Killed at any moment, the same command goes on.
# The weights lie below out/train; README.md beside this file says how long it takes.
# They are judged by: segdatagen bench scenes_suite --trained out/train
#
#   jobs/scenes_suite/all.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PWD/.venv/bin:$PATH"
suite=jobs/scenes_suite

segdatagen ingest scenes 20000@64x64 --split pretrain --out out/scenes-pretrain
segdatagen ingest scenes 5000@64x64 --split pretrain --out out/scenes-pretrain-5k
segdatagen ingest scenes 500@64x64 --split val --out out/scenes-val

train() { segdatagen train "$1" "$2" --local; }

judges_and_mask_ddpm() {
  train segmenter jobs/scenes_segmenter/train.yaml
  train segmenter jobs/scenes_segmenter/train_on.yaml
  train mask_ddpm jobs/scenes_mask_ddpm/train.yaml
  train mask_ddpm jobs/scenes_mask_ddpm/train_on.yaml
  train mask_ddpm jobs/scenes_mask_ddpm/train_on_20k.yaml
}
judges_and_mask_ddpm &
beside=$!
for kind in vae base controlnet t2i_adapter text2mask captioner clip; do
  train $kind $suite/$kind.yaml
done
wait "$beside"
