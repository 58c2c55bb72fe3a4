#!/usr/bin/env bash
# A SLURM of one node on loopback, for tests: cluster.sh start FOLDER, cluster.sh stop FOLDER.
# As root, from Debian's slurm-wlm and munge, without systemd. All files lie in FOLDER; `export SLURM_CONF=FOLDER/slurm.conf`
# before sbatch and squeue.
set -euo pipefail

start() {
  local folder=$1 host cores memory
  host=$(hostname -s)
  cores=$(nproc)
  memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
  mkdir -p "$folder"/{munge,state,spool,log}
  chown -R munge: "$folder/munge"
  chmod 755 "$folder" "$folder/munge"
  chmod 700 "$folder/log" && chown munge: "$folder/log"
  dd if=/dev/urandom of="$folder/munge/key" bs=1 count=1024 status=none
  chown munge: "$folder/munge/key" && chmod 400 "$folder/munge/key"
  runuser -u munge -- munged --key-file="$folder/munge/key" --socket="$folder/munge/socket" \
    --pid-file="$folder/munge/pid" --log-file="$folder/munge/log" --seed-file="$folder/munge/seed"
  cat > "$folder/slurm.conf" <<CONF
ClusterName=fakedet
SlurmctldHost=$host(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CredType=cred/munge
SlurmUser=root
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,requeue_delay=0
KillWait=30
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cores RealMemory=$memory State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
CONF
  export SLURM_CONF=$folder/slurm.conf
  slurmctld -f "$SLURM_CONF"
  slurmd -f "$SLURM_CONF"
  for _ in $(seq 60); do
    if sinfo --noheader --format %t 2>/dev/null | grep -q -E 'idle|mix'; then return 0; fi
    sleep 0.5
  done
  echo "the node did not come up; see $folder/*.log" >&2
  tail -5 "$folder/slurmctld.log" "$folder/slurmd.log" >&2 || true
  return 1
}

stop() {
  local folder=$1
  for name in slurmd slurmctld munge/; do
    if [ "$name" = munge/ ]; then file="$folder/munge/pid"; else file="$folder/$name.pid"; fi
    if [ -f "$file" ]; then kill "$(cat "$file")" 2>/dev/null || true; fi
  done
}

"$@"
