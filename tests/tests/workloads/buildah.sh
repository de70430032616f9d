# Builds an image in three steps with buildah, and runs it with podman.
set -e
mkdir -p /volume/image && cd /volume/image
tar --create --file busybox.tar --directory /busybox .
echo words >words
cat >Containerfile <<'END'
FROM scratch
ADD busybox.tar /
COPY words /srv/words
RUN chmod 640 /srv/words && chown 12:34 /srv/words && mv /bin/vi /bin/moved && rm -r /var && mkdir /var
CMD ["sh", "-c", "stat -c %a:%u:%g /srv/words; cat /srv/words; ls -d /bin/vi /bin/moved 2>/dev/null; ls -A /var"]
END
store="--root /volume/containers --runroot /run/containers-test --storage-driver overlay"
buildah $store bud --isolation chroot --layers --tag words . >/run/buildah.log 2>&1 || { tail -n 30 /run/buildah.log >&2; exit 1; }
echo "layers=$(buildah $store images --format '{{.Name}}' | grep -c words)"
for runtime in crun runc; do
  printed=$(podman $store --runtime "$runtime" --cgroup-manager cgroupfs --events-backend file run --rm --network none localhost/words)
  echo "$runtime="$printed
done
