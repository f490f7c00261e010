#!/usr/bin/env bash
# The ResNet demo from nothing, on one machine and its CPU: a teacher is trained and hosted twice, a
# student of two ranks is distilled from the service, while a teacher and a rank are killed; then the
# three modes are compared. About six minutes on two cores.
#
#   STUDENT, TEACHER (networks), TEACHER_EPOCHS, EPOCHS, WORK (a directory that is kept) change it;
#   what follows on the command line is for benchmarks/paper.py.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
STUDENT=${STUDENT:-shufflenet_v2_x0_5}
TEACHER=${TEACHER:-resnet18}
TEACHER_EPOCHS=${TEACHER_EPOCHS:-4}
EPOCHS=${EPOCHS:-4}
work=${WORK:-$(mktemp -d)}
export GLOG_minloglevel=2 PYTHONWARNINGS=ignore

clean_up() { # teachers leave etcd before it ends
    local others
    others=$(jobs -p | grep -vx "${etcd_process:-none}" || true)
    if [ -n "$others" ]; then
        kill $others 2>/dev/null || true
        wait $others 2>/dev/null || true
    fi
    kill $(jobs -p) 2>/dev/null || true
    wait
    [ -n "${WORK:-}" ] || rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

teacher() { # starts one; its process is $!
    edl teacher --model "$work/teacher/model" --etcd "$etcd" --service resnet_teacher \
        --cpu-threads 1 --ttl 3 &
}

wait_for() { # WHAT SECONDS COMMAND...: until the command succeeds
    local what=$1 left=$(($2 * 5))
    shift 2
    until "$@" >/dev/null 2>&1; do
        if ((left-- == 0)); then
            echo "$what did not come" >&2
            exit 1
        fi
        sleep 0.2
    done
}

say "1. Train the teacher, $TEACHER, and export it for edl teacher"
OUTPUT=$work/teacher NETWORK=$TEACHER EPOCHS=$TEACHER_EPOCHS TEACHERS=0 "$here/teacher.sh"

say "2. Start etcd and two teachers, which register there"
edl etcd --port 0 --data-dir "$work/etcd" >"$work/etcd.log" &
etcd_process=$!
wait_for etcd 30 grep -q "etcd ready at" "$work/etcd.log"
etcd=$(sed -n 's/etcd ready at //p' "$work/etcd.log")
teacher
first=$!
teacher
two_teachers() { [ "$(edl ls --etcd "$etcd" --json | grep -c '"feeds"')" = 2 ]; }
wait_for "a teacher" 60 two_teachers
edl ls --etcd "$etcd"

say "3. Distil $STUDENT in two ranks; kill rank 1 and a teacher, and start another teacher"
edl launch --master "etcd://$etcd" --elastic_level 1 --job_id demo --nproc_per_node 2 \
    --log_dir "$work/log" "$here/train.py" --mode service \
    --teachers "etcd://$etcd/resnet_teacher" --student "$STUDENT" --epochs "$EPOCHS" \
    --output "$work/student" --save-every 4 --log-every 6 --resume >"$work/launch.log" 2>&1 &
launcher=$!
for part in shared rank-0 rank-1; do
    wait_for "a checkpoint" 120 compgen -G "$work/student/checkpoints/*/$part"
done
ranks=($(cat "/proc/$launcher/task/$launcher/children"))
kill -9 "${ranks[1]}" "$first"
echo "killed rank 1 (process ${ranks[1]}) and a teacher (process $first)"
teacher
edl ls --etcd "$etcd"
if ! wait "$launcher"; then
    tail -n 40 "$work/launch.log"
    exit 1
fi
grep -h "^resumed\|^epoch" "$work/log/workerlog.0"

say "4. The student alone, with its teacher in its own process, and with teachers as a service"
python "$here/../../benchmarks/paper.py" --student "$STUDENT" --teacher "$TEACHER" \
    --teacher-weights "$work/teacher/student.pdparams" --epochs "$EPOCHS" --rounds 1 \
    --teachers 1 2 4 --work-dir "$work/paper" "$@"
