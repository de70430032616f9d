# Clones the repository of a C project and builds it with four parallel jobs.
set -e
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@example.org GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@example.org
mkdir -p /root/build/origin && cd /root/build/origin
git init --quiet --initial-branch main .
{
  echo '#include <stdio.h>'
  for i in $(seq 32); do echo "int part$i(int);"; done
  echo 'int main(void) { int sum = 0;'
  for i in $(seq 32); do echo "sum += part$i($i);"; done
  echo 'printf("%d\n", sum); return 0; }'
} >main.c
for i in $(seq 32); do printf '#include "parts.h"\nint part%d(int x) { return x * FACTOR; }\n' "$i" >"part$i.c"; done
echo '#define FACTOR 3' >parts.h
printf 'objects := $(patsubst %%.c,%%.o,$(wildcard *.c))\nsum: $(objects)\n\tgcc -o $@ $^\n%%.o: %%.c parts.h\n\tgcc -c -o $@ $<\n' >Makefile
git add . && git commit --quiet --message first
sed -i 's/3/5/' parts.h && git commit --quiet --all --message second
git gc --quiet
git clone --quiet --no-hardlinks file:///root/build/origin ../clone
cd ../clone
make --silent -j4
echo "sum=$(./sum)"
touch part1.c
echo "again=$(make -j4 | grep -c '^gcc')"
git checkout --quiet HEAD~1
make --silent -j4
echo "before=$(./sum)"
echo "changes=$(git status --porcelain --untracked-files=no)"
git fsck --full --strict 2>&1 | grep -v '^Checking' || true
