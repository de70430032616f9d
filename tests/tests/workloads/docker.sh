# A Docker daemon with the storage driver $1 and the data directory $2 runs containers, without network and behind a bridge.
set -e
driver=$1 run=/run/docker-$1
export DOCKER_HOST=unix://$run.sock DOCKER_CONFIG=$run DOCKER_BUILDKIT=0
# dockerd waits fifteen seconds for a containerd that it starts itself, which is too short on a software CPU.
containerd --config /dev/null --root "$2-containerd" --state "$run/containerd" --address "$run/containerd.sock" >>"$run.log" 2>&1 &
containerd=$!
finish() {
  local status=$? process
  ((status == 0)) || tail -n 30 "$run.log" >&2
  for process in ${daemon:-} "$containerd"; do kill "$process" && wait "$process" || true; done
  exit "$status"
}
trap finish EXIT
until ctr --address "$run/containerd.sock" version >/dev/null 2>&1; do
  kill -0 "$containerd"
  sleep 0.5
done
dockerd --data-root "$2" --exec-root "$run" --pidfile "$run.pid" --containerd "$run/containerd.sock" --storage-driver "$driver" \
  --host "$DOCKER_HOST" >>"$run.log" 2>&1 &
daemon=$!
until docker version >/dev/null 2>&1; do
  kill -0 "$daemon"
  sleep 0.5
done
echo "driver=$(docker info --format '{{.Driver}}')"
tar --create --directory /busybox . | docker import - busybox >/dev/null
echo "alone=$(docker run --rm --network none busybox sh -c 'touch /new && rm /bin/vi && echo in $(ls / | grep new)')"
mkdir -p "$run/context"
echo page >"$run/context/index.html"
printf 'FROM busybox\nCOPY index.html /site/\nRUN echo more >>/site/index.html\nCMD ["httpd", "-f", "-h", "/site"]\n' >"$run/context/Dockerfile"
docker build --quiet --tag site "$run/context" >/dev/null
docker run --detach --name site --publish 8080:80 site >/dev/null
get() { python3 -c 'import sys, urllib.request as r; print(*r.urlopen(sys.argv[1], timeout=60).read().decode().split())' "$1"; }
until get http://127.0.0.1:8080/ >/dev/null 2>&1; do sleep 0.5; done
echo "published=$(get http://127.0.0.1:8080/)"
address=$(docker inspect --format '{{.NetworkSettings.IPAddress}}' site)
echo "between=$(docker run --rm busybox wget -q -O - "http://$address/" | tr '\n' ' ')"
docker rm --force site >/dev/null
echo "left=$(docker ps --all --quiet)"
