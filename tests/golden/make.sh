#!/usr/bin/env bash
# Records the golden traces and what the commands of that time said of them: make.sh CHECKOUT, of commit e239269, whose
# tracekit and engines this Python has. Run it where the host may be renamed (`unshare -u`), or the trace has your host's name.
set -euo pipefail
checkout=$(realpath "$1")
export PYTHONPATH=$checkout:$checkout/daemon TORCHDYNAMO_DISABLE=1
prompts=$(realpath "$(dirname "$0")")/prompts.jsonl
mkdir -p /tmp/tracekit-golden  # a neutral path: the trace names the model's folder
cd /tmp/tracekit-golden
hostname golden
python - <<'P'
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file
from tracekit.engines.model import write_tiny_model

write_tiny_model(Path("tiny"))
shutil.copytree("tiny", "other")
tensors = load_file("other/model.safetensors")
tensors["model.layers.1.input_layernorm.weight"] *= 1.2
save_file(tensors, "other/model.safetensors", {"format": "pt"})
P
engine_args=(enforce_eager=true 'dtype="float32"' max_model_len=256 enable_prefix_caching=true)
replay() {  # TRACE MODEL EXPECT OUT: an exit code of 4 is a verdict
  python -m tracekit replay "$1" --model "$2" --dtype float32 --expect "$3" --json > "$4" || [ $? = 4 ]
}
for engine in v1 v0; do
  mkdir $engine
  python -m tracekit record --engine $engine --model "$PWD/tiny" --prompts "$prompts" "${engine_args[@]/#/--engine-arg=}" \
    -o $engine/trace.arrow --completions $engine/completions.jsonl
  python -m tracekit info $engine/trace.arrow --json > $engine/info.json
  python -m tracekit doctor $engine/trace.arrow --completions $engine/completions.jsonl --json > $engine/doctor.json
  replay $engine/trace.arrow tiny processed $engine/replay-processed.json
done
replay v0/trace.arrow tiny raw v0/replay-raw.json
replay v1/trace.arrow other raw v1/replay-other.json
