#!/usr/bin/env bash
# From JSONL to an adapter and its completions, by the command line. Run it again after an interruption:
# finished steps say "complete", an unfinished one resumes.
set -euo pipefail
cd "$(dirname "$0")"
MODEL=${MODEL:-tiny} # a hub id or a directory; "tiny" is the embedded model
DATA=${DATA:-demonstrations.jsonl}
RUNS=${RUNS:-runs}
STEPS=${STEPS:-200}

# List every problem of the file, by line, before any time is spent on training.
alignkit data check "$DATA"

# No prompt is in both parts, so what is asked below was never trained on.
mkdir -p "$RUNS"
alignkit data split "$DATA" --parts train=0.7,test=0.3 --output "$RUNS/{}.jsonl"

alignkit sft --model "$MODEL" --data "$RUNS/train.jsonl" --output "$RUNS/sft" --max-steps "$STEPS"

# See what it says now. Whether it is better, judges tell: docs/EVALUATING.md.
alignkit generate --model "$RUNS/sft" --prompts "$RUNS/test.jsonl" --n 2 --output "$RUNS/candidates"
cat "$RUNS/candidates/candidates.jsonl"
