#!/usr/bin/env bash
# Runs the container recipe step by step in a clean Debian 12, without a container engine: a folder
# made by debootstrap, and chroot. Then uses it as a user without a name or a home that can be
# written, as containers do. As root; needs debootstrap, 6 GB and ten minutes.
#
#   bash tests/launch/container_in_chroot.sh FOLDER [--run]     --run: and six steps of the loop
#   PREPARE=script.sh bash ...      called with FOLDER before anything is installed there
set -euo pipefail
folder=${1:?name a folder}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
nobody=54321

say() { echo "chroot: $*"; }
inside() { chroot "$folder" /usr/bin/env -i PATH=/usr/local/bin:/usr/bin:/bin "$@"; }
as_nobody() { # no name, no group, a home that can only be read
  chroot --userspec=$nobody:$nobody "$folder" /usr/bin/env -i \
    PATH=/usr/local/bin:/usr/bin:/bin HOME=/home/of-another OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" "$@"
}
leave() { umount -R "$folder/dev" "$folder/proc" 2> /dev/null || true; }
trap leave EXIT

if [ ! -e "$folder/etc/debian_version" ]; then
  say "1/4 debootstrap"
  debootstrap --variant=minbase bookworm "$folder" > /dev/null
fi
mount -t proc proc "$folder/proc"
mount --rbind /dev "$folder/dev"
mount --make-rslave "$folder/dev"
# How this machine reaches its package indices is no part of the recipe: PREPARE may say it.
cp /etc/resolv.conf /etc/hosts "$folder/etc/"
[ -z "${PREPARE:-}" ] || bash "$PREPARE" "$folder"

say "2/4 COPY . /opt/dynatok"
mkdir -p "$folder/opt/dynatok"
git -C "$here" archive HEAD | tar -x -C "$folder/opt/dynatok"
say "3/4 install.sh cpu"
inside bash /opt/dynatok/launch/container/install.sh cpu
mkdir -p -m 1777 "$folder/work"
mkdir -p -m 755 "$folder/home/of-another"

say "4/4 as user $nobody"
as_nobody dynatok doctor
as_nobody dynatok launch /opt/dynatok/launch/configs/tiny.yaml --dir /work/runs --dry-run
if [ "${2:-}" = --run ]; then
  as_nobody dynatok launch /opt/dynatok/launch/configs/tiny.yaml --dir /work/runs \
    --learner.training.max_steps 6 --actor.evaluation.enabled false
fi
say "all went well"
