# Installs packages from files with dpkg and apt, and removes them.
set -e
mkdir -p /root/packages && cd /root/packages
make_package() {
  mkdir -p "$1/DEBIAN" "$1/usr/share/$1" "$1/etc"
  printf 'Package: %s\nVersion: 1.0\nArchitecture: all\nMaintainer: a <a@example.org>\nDescription: test\n%s' "$1" "$2" >"$1/DEBIAN/control"
  printf '#!/bin/sh\necho "$1" >>/root/packages/scripts\n' | tee "$1/DEBIAN/postinst" >"$1/DEBIAN/prerm"
  chmod 755 "$1/DEBIAN/postinst" "$1/DEBIAN/prerm"
  echo "/etc/$1.conf" >"$1/DEBIAN/conffiles"
  echo setting >"$1/etc/$1.conf"
  for i in $(seq 100); do echo "$i" >"$1/usr/share/$1/$i"; done
  dpkg-deb --root-owner-group --build "$1" >/dev/null
}
make_package first ''
make_package second $'Depends: first\n'
dpkg --install first.deb >/dev/null
apt-get install --yes ./second.deb >/root/packages/apt.log 2>&1 || { cat /root/packages/apt.log >&2; exit 1; }
echo "installed=$(dpkg-query --show --showformat '${Package}:${db:Status-Abbrev};' first second)"
echo "files=$(dpkg --verify first second | wc -l) $(cat /usr/share/first/100 /etc/second.conf | tr '\n' ' ')"
apt-get purge --yes first second >/dev/null 2>&1
echo "scripts=$(tr '\n' ' ' <scripts)"
echo "left=$(ls -d /usr/share/first /usr/share/second /etc/first.conf /etc/second.conf 2>/dev/null)"
