# What a node does on a machine with nothing but version 2 of the control groups. Sourced by the guest's shell.

export KUBECONFIG=/etc/coracle/kubeconfig
slice=/sys/fs/cgroup/coracle.slice

# Asks until it is true, for as long as an emulated processor may need; ends the scenario when it never is.
until_true() {
  deadline=$(($(date +%s) + 90))
  until eval "$*" >/tmp/asked 2>&1; do
    if [ "$(date +%s)" -gt $deadline ]; then
      echo "never: $*"
      cat /tmp/asked
      kubectl get pods,events --all-namespaces
      tail -n 60 /var/log/server.log
      poweroff -f
    fi
    sleep 0.5
  done
}

start() {
  coracle server --log-level info >>/var/log/server.log 2>&1 &
  server=$!
  until_true test -s $KUBECONFIG
  until_true "kubectl get --raw /readyz | grep ok"
}

of() { kubectl get pod "$1" -o "jsonpath=$2"; }
# The cgroup of a pod's container, as the API names both.
group() {
  set -- $(of "$1" '{.metadata.uid} {.status.containerStatuses[0].containerID}')
  find $slice -type d -path "*/pod$1/${2##*/}"
}
# The same below the slice, with UID and ID in place of the names.
place() {
  directory=$(group "$1")
  echo "${directory#$slice/}" | sed -E 's#/pod[^/]+/[^/]+$#/podUID/ID#'
}
# The contents of files of a directory.
files() {
  directory=$1
  shift
  for file in "$@"; do echo "$file=$(cat "$directory/$file")"; done
}
# Processes with this command line.
running() {
  for process in /proc/[0-9]*; do
    [ "$(tr '\0' ' ' <"$process/cmdline" 2>/dev/null)" = "$1 " ] && echo "${process#/proc/}"
  done
}

scenario() {
  coracle check >/tmp/check
  result check $?
  cat /tmp/check
  result cgroups "$(grep cgroup /tmp/check)"

  start
  until_true "coracle image import /busybox.tar"
  until_true "kubectl apply -f /pods.yaml"
  until_true "kubectl wait pod limited whole humble --for=condition=Ready --timeout=60s"

  limited=$(group limited)
  result limited.place "$(place limited)"
  for seen in view writes devices; do
    result limited.$seen "$(kubectl logs limited | sed -n "s/^$seen //p")"
  done
  result limited.container "$(files "$limited" cpu.weight cpu.max memory.max memory.swap.max memory.oom.group pids.max)"
  result limited.pod "$(files "${limited%/*}" cpu.weight cpu.max memory.max)"
  whole=$(group whole)
  result whole.place "$(place whole)"
  result whole.container "$(files "$whole" cpu.weight cpu.max memory.max memory.oom.group)"
  result whole.pod "$(files "${whole%/*}" cpu.weight cpu.max memory.max)"
  humble=$(group humble)
  result humble.place "$(place humble)"
  result humble.container "$(files "$humble" cpu.weight cpu.max memory.max)"
  result humble.pod "$(files "${humble%/*}" cpu.weight)"
  result classes "$(files $slice/kubepods burstable/cpu.weight besteffort/cpu.weight)"

  # A command in the pod is charged to the pod.
  kubectl exec limited -- sleep 5432 >/dev/null 2>&1 &
  until_true "running 'sleep 5432' | grep ."
  result exec.inside "$(grep -cx "$(running 'sleep 5432')" "$limited/cgroup.procs")"

  until_true '[ "$(of hungry "{.status.phase}")" = Failed ]'
  result hungry "$(of hungry '{.status.containerStatuses[0].state.terminated.reason} {.status.containerStatuses[0].state.terminated.exitCode}')"
  result hungry.left "$(running 'sleep 4324' | wc -l)"

  # Containers live on without the server, and the next one knows them.
  before="$(of limited '{.status.containerStatuses[0].containerID}') $(running 'sleep 4321' | tr '\n' ' ')"
  kill -9 $server
  wait $server
  start
  until_true "kubectl wait pod limited whole humble --for=condition=Ready --timeout=60s"
  until_true "kubectl exec limited -- true"
  after="$(of limited '{.status.containerStatuses[0].containerID}') $(running 'sleep 4321' | tr '\n' ' ')"
  [ "$before" = "$after" ]
  result adopted $?
  result restarts "$(kubectl get pods -o 'jsonpath={.items[*].status.containerStatuses[0].restartCount}')"

  kubectl delete pods --all --timeout=60s
  result deleted $?
  until_true "! find $slice -type d -name 'pod*' | grep ."
  result left "$(find $slice -type d -name 'pod*')"
  result left.running "$(for n in 4321 4322 4323 4324 5432; do running "sleep $n"; done)"
  result log "$(grep -E ' (WARN|ERROR) ' /var/log/server.log | tail -n 20)"
  coracle stop --all
  result stopped $?
  result slice "$(find $slice -name cgroup.procs -exec cat {} + 2>/dev/null | wc -l)"
}

scenario
