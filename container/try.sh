#!/usr/bin/env bash
# Runs a built image as the challenge does, with buildah alone: container/try.sh IMAGE CASES WEIGHTS OUTPUT [arguments]
#
# Another user than root (the image's own), no network, a read-only root and inputs, an empty /tmp. For machines without a
# container engine: buildah's chroot isolation cannot take the network away, so namespaces are made here. Needs root.
set -euo pipefail
[ $# -ge 4 ] || { sed -n '2,5s/^# \?//p' "$0"; exit 2; }
image=$1 cases=$(realpath "$2") weights=$(realpath "$3") output=$(realpath -m "$4")
shift 4
container=$(buildah from --pull-never "$image")
trap 'buildah rm "$container" > /dev/null' EXIT
root=$(buildah mount "$container")
user=$(buildah inspect --format '{{.OCIv1.Config.User}}' "$container")
entry=$(buildah inspect --format '{{index .OCIv1.Config.Entrypoint 0}}' "$container")
mkdir -p "$root/input" "$root/weights" "$root/output" "$output"
chown "$user" "$output"
root=$root user=$user entry=$entry cases=$cases weights=$weights output=$output unshare --mount --net --fork bash -euc '
    bind() { mount --bind "$1" "$2"; [ "$3" = rw ] || mount -o remount,bind,ro "$2"; }
    mount --make-rprivate /
    mount --bind "$root" "$root"
    bind "$cases" "$root/input" ro
    bind "$weights" "$root/weights" ro
    bind "$output" "$root/output" rw
    mount -t tmpfs tmpfs "$root/tmp"
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
    mount -o remount,bind,ro "$root"
    exec chroot --userspec="$user" "$root" /usr/bin/env -i \
        PATH=/opt/brasyn_dist/venv/bin:/usr/local/bin:/usr/bin:/bin "$entry" "$@"
' try "$@"
