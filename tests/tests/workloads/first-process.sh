# The container's first process. It leaves the top cgroup and enables all controllers for the cgroups below, as engines in a
# container expect. Then it reaps the processes that the workloads leave behind.
set -e
mkdir /sys/fs/cgroup/init
echo $$ >/sys/fs/cgroup/init/cgroup.procs
for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control; done
ip link set lo up 2>/dev/null || true
trap 'exit 0' TERM
touch /volume/ready
sleep infinity &
wait
