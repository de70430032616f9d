# Redis is killed while it appends to its file. Afterwards it has every entry that it has confirmed.
set -e
mkdir -p /var/lib/redis/test
start() {
  redis-server --dir /var/lib/redis/test --appendonly yes --appendfsync always --save '' --port 0 --unixsocket /run/redis.sock >/run/redis.log 2>&1 &
  server=$!
  until [[ $(redis-cli -s /run/redis.sock ping 2>/dev/null) == PONG ]]; do kill -0 "$server"; sleep 0.1; done
}
trap 'kill -KILL $(jobs -p) 2>/dev/null || true' EXIT
start
{ for i in $(seq 100000); do echo "rpush list $i"; done; } | redis-cli -s /run/redis.sock >/run/told 2>/dev/null &
writer=$!
until (($(wc -l </run/told) >= 500)); do kill -0 "$writer"; sleep 0.1; done
redis-cli -s /run/redis.sock bgrewriteaof >/dev/null
sleep 1
kill -KILL "$server"
wait "$writer" "$server" || true
told=$(grep -Eo '[0-9]+' /run/told | tail -n 1)
start
kept=$(redis-cli -s /run/redis.sock llen list)
echo "missing=$((kept >= told ? 0 : told - kept))"
echo "value=$(($(redis-cli -s /run/redis.sock lindex list $((told - 1))) - told))"
redis-cli -s /run/redis.sock shutdown
wait "$server"
