#!/bin/sh
# The main job on the embedded model, in sizes for a short wait. Each step goes on where it was, and a finished one
# returns at once.
set -eu
cd "$(dirname "$0")/.."
extratime train sft --config recipes/sft/sums.yaml --max_steps 45
extratime train rollouts recipes/rollouts/sums.yaml --set limit=60
extratime train self_eval --config recipes/self_eval/sums.yaml
extratime evaluate recipes/evaluate/demo.yaml
