# Creates all kinds of files of a root file system below $1.
set -e
mkdir -p "$1" && cd "$1"
mkdir -p dev etc usr/bin usr/share/deep tmp srv/shared
mknod -m 666 dev/null c 1 3
mknod -m 600 dev/console c 5 1
mknod -m 660 dev/sda b 8 0
mknod -m 660 dev/large c 300 70000
chown 0:6 dev/sda
mkfifo -m 622 dev/initctl
printf 'program' >usr/bin/hard
chmod 4755 usr/bin/hard
ln usr/bin/hard usr/bin/link
ln usr/bin/hard usr/bin/another
printf 'ping' >usr/bin/ping
setcap cap_net_raw+ep usr/bin/ping
printf 'group' >usr/bin/group
chown 0:42 usr/bin/group
chmod 2755 usr/bin/group
chmod 1777 tmp
chmod 2775 srv/shared
chown 1234:70000 srv/shared
ln -s /usr/bin/hard bin
ln -s ../nowhere etc/dangling
chown -h 99:98 etc/dangling
printf 'secret' >etc/shadow
chmod 0 etc/shadow
setfattr -n user.note -v kept etc/shadow
setfattr -n trusted.note -v kept usr/share
truncate -s 5M usr/share/sparse
printf 'end' >>usr/share/sparse
for i in $(seq 300); do echo "$i" >"usr/share/deep/file $i"; done
printf 'x' >"usr/share/$(printf '%0250d' 1)"
printf 'x' >"usr/share/$(printf 'n\303\244me')"
find . -exec touch --no-dereference --date '2001-02-03 04:05:06.123456789 UTC' {} +
