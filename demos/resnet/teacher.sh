#!/usr/bin/env bash
# Train a teacher (unless WEIGHTS names its parameters), export it, and serve it until Ctrl-C.
#
#   ETCD=127.0.0.1:2379 ./teacher.sh                  # digits, two teachers on this machine
#   ETCD=10.0.0.1:2379 NETWORK=ResNeXt101_32x16d_wsl WEIGHTS=w.pdparams CLASSES=1000 IMAGE_SIZE=224 \
#       DATA=folder TEACHERS=8 OPTIONS="--host 0.0.0.0 --precision fp16" DEVICE=gpu ./teacher.sh
#
# DATA and DATA_PATH are train.py's: what it is trained on, and how its images are normalised.
# TEACHERS=0 only exports it. With DEVICE=gpu each teacher has a GPU of its own. OPTIONS are for edl teacher.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
ETCD=${ETCD:-127.0.0.1:2379}
SERVICE=${SERVICE:-resnet_teacher}
NETWORK=${NETWORK:-resnet50}
CLASSES=${CLASSES:-10}
DATA=${DATA:-digits}
IMAGE_SIZE=${IMAGE_SIZE:-32}
EPOCHS=${EPOCHS:-10}
TEACHERS=${TEACHERS:-2}
DEVICE=${DEVICE:-cpu}
OUTPUT=${OUTPUT:-teacher}
read -ra options <<<"${OPTIONS:-}"

if [ -z "${WEIGHTS:-}" ]; then
    WEIGHTS=$OUTPUT/student.pdparams
    python "$here/train.py" --mode pure --student "$NETWORK" --epochs "$EPOCHS" \
        --data "$DATA" --data-path "${DATA_PATH:-}" --image-size "$IMAGE_SIZE" --output "$OUTPUT"
fi
python "$here/export.py" --network "$NETWORK" --weights "$WEIGHTS" --classes "$CLASSES" \
    --data "$DATA" --image-size "$IMAGE_SIZE" --out "$OUTPUT/model"

trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT INT TERM
for ((number = 0; number < TEACHERS; number++)); do
    device=$DEVICE
    [ "$DEVICE" = gpu ] && device=gpu:$number
    edl teacher --model "$OUTPUT/model" --etcd "$ETCD" --service "$SERVICE" --device "$device" \
        "${options[@]}" &
done
wait
