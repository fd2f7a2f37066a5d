#!/usr/bin/env bash
# Everything that made the reference model, about three hours on two CPU cores:
#
#   docs/reference-model/train.sh chest_xray_224 chest_xray_640 runs/reference
#
# The two folders hold the Kaggle training set, once as 224 x 224 and once, in part, with its aspect ratio (long side 640).
set -euo pipefail
first=$1 second=$2 out=$3
here=$(dirname "$0")
mkdir -p "$out"

# 1. A search judged by a held-out style, degraded: settings that carry over, not settings that fit.
python -m finetune.holdouts --data "$first" --subgroup series-and-cause --split val --limit 700 \
    --cache "$out/cache" --out "$out/judge"
python -m finetune.tune --data "$first" --splits "$out/judge/series-and-cause.csv" --balance undersample \
    --degraded-validation 1 --epochs 5 --trials 8 --cache "$out/cache" --out "$out/search"

# 2. The split by patient, and the copies of its training radiographs.
python -m finetune.run --data "$first" --epochs 0 --head-epochs 0 --no-publish --cache "$out/cache" --out "$out/split"
python "$here/table.py" "$out/split/latest/splits.csv" "$first" "$second" \
    --validation "$out/validation_640.csv" > "$out/reference.csv"

# 3. The model: seven epochs, three more from there with the rate raised again, and then calibration, band, operating point
# and novelty once more, for the weights as they are stored, in float16. Each step starts from the one before as stored.
rounded() { # RUN NAME FOLDER: the run's figures, in $out/evaluation_NAME, and its checkpoint
    python -m finetune.evaluate --checkpoint "$1" --data "$out/reference.csv" --split val --cache "$out/cache" \
        --out "$out/evaluation_$2"
    python -m finetune.release "$1" --evaluation "$out/evaluation_$2" --out "$3"
}
python -m finetune.run --data "$out/reference.csv" --geometry stretch --epochs 7 --patience 7 \
    --tower-learning-rate 0.00035 --layer-decay 0.85 --average 0.998 --objective both --dropout 0.1 \
    --augmentation 1.3 --degradation 1 --degraded-validation 1 --wise-ft --balanced-point --no-publish \
    --cache "$out/cache" --out "$out/first"
rounded "$out/first/latest" first "$out/first_cycle_fp16"
python -m finetune.run --data "$out/reference.csv" --geometry stretch --start "$out/first_cycle_fp16" \
    --head-epochs 0 --epochs 3 --patience 9 --seed 1 --learning-rate 0.0005 \
    --tower-learning-rate 0.0003 --layer-decay 0.85 --average 0.998 --objective both --dropout 0.1 \
    --augmentation 1.3 --degradation 1 --degraded-validation 1 --balanced-point --no-publish \
    --cache "$out/cache" --out "$out/second"
rounded "$out/second/latest" second "$out/second_cycle_fp16"
python -m finetune.run --data "$out/reference.csv" --geometry stretch --start "$out/second_cycle_fp16" \
    --epochs 0 --head-epochs 0 --seed 1 --dropout 0.1 --balanced-point --no-publish \
    --cache "$out/cache" --out "$out/runs"

# 4. What it is worth, and the checkpoint that comes with the project.
rounded "$out/runs/latest" reference finetune/reference
python -m finetune.evaluate --checkpoint "$out/runs/latest" --data "$out/validation_640.csv" --split all \
    --cache "$out/cache" --out "$out/evaluation_own_resampling"
