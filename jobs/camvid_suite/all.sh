#!/usr/bin/env bash
# Trains what job.yaml names, from the weights of the small suite, on two cores. Stopped at any point, the same command goes on.
#
#   jobs/camvid_suite/all.sh FOLDER_OF_CAMVID
set -euo pipefail
camvid=$(realpath "${1:?give the folder of CamVid, which has train/ and trainannot/}")
cd "$(dirname "$0")/../.."
export PATH="$PWD/.venv/bin:$PATH"
jobs=jobs/camvid_suite

segdatagen ingest camvid "$camvid" --split train --out out/camvid/train
segdatagen ingest camvid "$camvid" --split val --out out/camvid/val

{
  segdatagen train segmenter $jobs/judge.yaml --local
  segdatagen train vae $jobs/vae.yaml --local
  segdatagen train text2mask $jobs/text2mask.yaml --local
} &
other=$!
segdatagen train base $jobs/base.yaml --local
segdatagen train controlnet $jobs/controlnet.yaml --local
wait "$other"
segdatagen run $jobs/job.yaml
segdatagen run $jobs/val_job.yaml
segdatagen judge $jobs/job.yaml --keep
segdatagen judge $jobs/val_job.yaml --keep
for run in camvid-latent camvid-latent-val; do
  segdatagen publish out/camvid/runs/$run/v1
  segdatagen report out/camvid/runs/$run/v1
done
