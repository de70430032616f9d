# PostgreSQL is killed while it writes rows. Afterwards it has every row that it has confirmed.
set -e
data=/var/lib/postgresql/test
PATH=$PATH:$(echo /usr/lib/postgresql/*/bin)
as() { runuser -u postgres -- "$@"; }
start() { as env PATH="$PATH" pg_ctl --pgdata "$data" --log "$data.log" --wait --timeout 120 --options '-c listen_addresses= -c unix_socket_directories=/tmp' start >/dev/null; }
query() { as psql --host /tmp --quiet --no-align --tuples-only --command "$1"; }
set -o pipefail
processes() { grep --no-messages --files-with-matches --line-regexp postgres /proc/[0-9]*/comm | cut -d / -f 3; }
trap 'kill -KILL $(jobs -p) $(processes) 2>/dev/null || true' EXIT
as env PATH="$PATH" initdb --pgdata "$data" --auth trust >/dev/null
start
query 'create table t (id serial primary key, word text not null)'
: >/tmp/told
yes "insert into t (word) values (repeat('x', 500)) returning id;" | as psql --host /tmp --quiet --no-align --tuples-only >>/tmp/told 2>/dev/null &
writer=$!
until (($(wc -l </tmp/told) >= 200)); do kill -0 "$writer"; sleep 0.1; done
kill -KILL $(processes)
wait "$writer" || true
while processes >/dev/null; do sleep 0.1; done
start
told=$(tail -n 1 /tmp/told)
echo "recovered=$(grep -c 'redo starts' "$data.log")"
echo "missing=$(query "select count(*) from generate_series(1, $told) as n where not exists (select from t where id = n and word = repeat('x', 500))")"
query 'vacuum full analyze t'
query "insert into t (word) values ('last')"
echo "last=$(query "select word from t order by id desc limit 1")"
as env PATH="$PATH" pg_ctl --pgdata "$data" --mode fast --wait stop >/dev/null
