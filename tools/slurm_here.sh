#!/bin/bash
# A Slurm cluster of three hosts on this machine, to try a cluster's study without one: `head` (slurmctld), `node1` and `node2` (slurmd).
# Each host is a set of Linux namespaces: its own network (a veth on one bridge), name, processes, /tmp, /run and /dev/shm. All of them see the
# same project: the shared file system. Nothing of this machine is changed but one bridge, and `down` removes that.
#
#   tools/slurm_here.sh up            start it (as root; Debian: apt-get install slurmctld slurmd slurm-client munge iproute2 util-linux)
#   tools/slurm_here.sh run CMD ...   run a command on `head`, e.g. `run sinfo`
#   tools/slurm_here.sh kill node1    the node is gone at once, with all that ran there, as if somebody pulled the plug
#   tools/slurm_here.sh start node1   plug it in again
#   tools/slurm_here.sh status        nodes and jobs
#   tools/slurm_here.sh down          end everything; logs stay in the folder until the next `up`
#
# SLURM_HERE: the folder of configuration, state and logs (default outputs/slurm_here). CPUS: processors that a node offers (default 1).
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin
cd "$(dirname "$0")/.."
D=${SLURM_HERE:-$PWD/outputs/slurm_here}
NET=10.213.77
BRIDGE=owfslurm0
declare -A NUMBER=([head]=10 [node1]=1 [node2]=2)

say() { echo "slurm_here: $*" >&2; }
fail() { say "$*"; exit 1; }
# outer process id of a host's first process; a recycled number is not taken for it
pid() {
    local p
    p=$(cat "$D/$1.pid" 2>/dev/null) || return 1
    grep -qz "slurm_here.sh" "/proc/$p/cmdline" 2>/dev/null && echo "$p"
}
on() { local p; p=$(pid "$1") || fail "$1 does not run: tools/slurm_here.sh up"; shift; nsenter -t "$p" --net --mount --uts --pid --wd="${AT:-$PWD}" env SLURM_CONF="$D/slurm.conf" "$@"; }

configure() {
    mkdir -p "$D/state"
    dd if=/dev/urandom of="$D/munge.key" bs=1024 count=1 status=none
    chmod 400 "$D/munge.key"
    echo "127.0.0.1 localhost" > "$D/hosts"
    for h in "${!NUMBER[@]}"; do echo "$NET.${NUMBER[$h]} $h"; done >> "$D/hosts"
    cat > "$D/slurm.conf" <<EOF
ClusterName=here
SlurmctldHost=head
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
StateSaveLocation=$D/state
SlurmdSpoolDir=/run/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile=$D/slurmctld.log
SlurmdLogFile=$D/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=5,batch_sched_delay=1
SlurmdTimeout=10
SlurmctldTimeout=10
MessageTimeout=10
KillWait=3
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=node[1-2] CPUs=${CPUS:-1} RealMemory=2000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
EOF
}

# the first process of a host: already in namespaces of its own
host() {
    local name=$1
    mount --make-rprivate /
    for d in /tmp /var/tmp /run /dev/shm; do mount -t tmpfs tmpfs "$d"; done
    chmod 1777 /tmp /var/tmp /dev/shm
    mount --bind "$D/hosts" /etc/hosts
    hostname "$name"
    until ip link show "$name" >/dev/null 2>&1; do sleep .1; done
    ip link set lo up
    ip addr add "$NET.${NUMBER[$name]}/24" dev "$name"
    ip link set "$name" up
    mkdir -p /run/munge /run/slurmd
    chmod 755 /run/munge
    munged --force --key-file="$D/munge.key" --socket=/run/munge/munge.socket.2 --pid-file=/run/munge/pid \
        --log-file="$D/munged-$name.log" --seed-file=/run/munge/seed
    export SLURM_CONF=$D/slurm.conf
    if [ "$name" = head ]; then slurmctld -c; else slurmd -N "$name"; fi
    while :; do sleep 3600 & wait $! || true; done              # it also reaps what its host leaves behind
}

start() {
    local name=$1 up
    if pid "$name" >/dev/null; then fail "$name runs already"; fi
    env -i PATH="$PATH" HOME=/root LANG=C.UTF-8 SLURM_HERE="$D" setsid unshare --net --mount --uts --pid --fork --kill-child --mount-proc \
        /bin/bash "$PWD/tools/slurm_here.sh" _host "$name" </dev/null >"$D/$name.log" 2>&1 &
    up=$!
    until pgrep -P "$up" >"$D/$name.pid"; do kill -0 "$up" 2>/dev/null || fail "$name did not start: $(cat "$D/$name.log")"; sleep .05; done
    ip link add "v$name" type veth peer name "$name"
    ip link set "$name" netns "$(cat "$D/$name.pid")"
    ip link set "v$name" master $BRIDGE up
}

stop() {
    local p
    p=$(pid "$1") || return 0
    kill -9 "$p"
    while [ -d "/proc/$p" ]; do sleep .05; done
    rm -f "$D/$1.pid"
}

up() {
    [ "$(id -u)" = 0 ] || fail "making network namespaces needs root"
    for c in slurmctld slurmd sbatch munged ip unshare nsenter; do
        command -v $c >/dev/null || fail "there is no $c. Debian: apt-get install slurmctld slurmd slurm-client munge iproute2 util-linux"
    done
    down
    if ip link show $BRIDGE >/dev/null 2>&1; then fail "another cluster runs here: SLURM_HERE=its/folder tools/slurm_here.sh down"; fi
    rm -rf "$D"
    configure
    ip link add $BRIDGE type bridge
    ip link set $BRIDGE up
    for h in head node1 node2; do start $h; done
    for _ in $(seq 60); do
        if [ "$(on head sinfo -h -t idle -o %D 2>/dev/null)" = 2 ]; then say "up: head, node1, node2"; return; fi
        sleep 1
    done
    tail -n 5 "$D"/*.log >&2
    down
    fail "the nodes did not register within a minute; logs in $D"
}

down() {
    [ -f "$D/slurm.conf" ] || return 0                          # it never ran, or not from this folder
    for h in node1 node2 head; do stop $h; done
    if [ -z "$(ip link show master $BRIDGE 2>/dev/null)" ] && ip link show $BRIDGE >/dev/null 2>&1; then ip link del $BRIDGE; fi
}

case ${1:-} in
    up) up ;;
    down) down ;;
    start | kill) [ -n "${NUMBER[${2:-}x]:-${NUMBER[${2:-none}]:-}}" ] || fail "$1 what? head, node1 or node2"; if [ "$1" = kill ]; then stop "$2"; else start "$2"; fi ;;
    status) on head sinfo -N -o '%N %t %E'; on head squeue ;;
    run) shift; on head "$@" ;;
    _host) host "$2" ;;
    *) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit 2 ;;
esac
