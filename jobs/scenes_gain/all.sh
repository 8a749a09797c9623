#!/usr/bin/env bash
# Everything of the lab note beside this file, in order. Stopped at any point, the same command goes on from there.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PWD/.venv/bin:$PATH"
jobs=jobs/scenes_gain
out=out/scenes_gain

segdatagen ingest scenes 46@64x64 --split train --out $out/n46
segdatagen ingest scenes 183@64x64 --split train --out $out/n183
segdatagen ingest scenes 200@64x64 --split val --out $out/val
segdatagen ingest scenes 500@64x64 --split test --out $out/test

# The networks of both sets are trained side by side, each on one core.
networks() {
  segdatagen train segmenter "$jobs/judge_$1.yaml" --local
  segdatagen train mask_ddpm "$jobs/generator_$1.yaml" --local
}
networks n46 &
few=$!
networks n183
wait "$few"

for real in n46 n183; do
  for generator in own pretrained; do
    for ratio in 1x 2x; do
      segdatagen run $jobs/${real}_${generator}_${ratio}_job.yaml
      segdatagen publish $out/runs/$real-$generator-$ratio/v1
    done
  done
done

segdatagen experiment $jobs/experiment.yaml
