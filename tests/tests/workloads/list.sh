# Prints all properties of the files below $1 that unpacking must restore.
set -e
cd "$1"
find . -printf '%p %y %m %U:%G %n %l %T@\n' | LC_ALL=C sort
find . -type f -printf '%p %s bytes\n' | LC_ALL=C sort
find . \( -type c -o -type b \) -exec stat --format '%n %t:%T' {} + | LC_ALL=C sort
find . -samefile usr/bin/hard | LC_ALL=C sort
getfattr --no-dereference --recursive --dump --match=- --encoding=hex .
find . -type f -exec sha256sum {} + | LC_ALL=C sort
